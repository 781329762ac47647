"""Judges the masks at the end of a pruning run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from llmshearing.callbacks.held_out import at_end, measure
from llmshearing.callbacks.manifest import held_out_losses
from llmshearing.files import write_json
from llmshearing.models.metrics import HeldOutLoss
from llmshearing.models.shearing import ShearingModel, unwrapped
from llmshearing.pruning.masks import Masks

log = logging.getLogger(__name__)


class MaskReportWriter(Callback):
    """Logs the mask report when training ends and writes `mask_report.json`, before the checkpoint.

    A run that is killed once its last checkpoint is whole is a finished one, with its verdict.

    Args:
        directory: the run directory.
        report: is told what goes on.
    """

    def __init__(self, directory: Path, report: Callable[[str], None]) -> None:
        self.directory, self.report = directory, report
        self.judged = False

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Judge after the last step."""
        del logger
        if at_end(state) and not self.judged:  # the last step may end an epoch, too
            self.judge(state)
            self.judged = True

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Judge where the data is used up."""
        self.batch_checkpoint(state, logger)

    def judge(self, state: State) -> None:
        """Measure both models on the held-out rows, on all ranks, and judge."""
        masks = unwrapped(state.model).masks
        if masks is None:
            return
        exact = _mean(held_out_losses(state))  # of the evaluation that ends every run
        soft = exact if masks.state.frozen else _mean(_soft_losses(state, masks, self.report))
        verdict = dataclasses.replace(masks.report(), soft_loss=soft, exact_loss=exact)
        if dist.get_global_rank() != 0:
            return
        write_json(self.directory / "mask_report.json", verdict.as_dict())
        log.info("verdict on the masks\n%s", verdict.as_table())
        for problem in verdict.problems():
            log.warning("verdict: %s", problem)


def _soft_losses(state: State, masks: Masks, report: Callable[[str], None]) -> dict[str, float]:
    """Held-out loss per domain without the cut to size, nats per token; on all ranks."""

    def add(model: ShearingModel, batch: dict[str, Tensor], metric: HeldOutLoss) -> None:
        model.update_metric(batch, model.eval_forward(batch), metric)

    masks.cuts_evaluation = False
    try:
        return measure(state, state.evaluators, add, report)
    finally:
        masks.cuts_evaluation = True


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None
