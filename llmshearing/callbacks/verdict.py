"""Judges the masks at the end of a pruning run."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch
from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.manifest import held_out_losses
from llmshearing.files import write_json
from llmshearing.models.metrics import HeldOutLoss
from llmshearing.models.shearing import ShearingModel, unwrapped
from llmshearing.pruning.masks import Masks

log = logging.getLogger(__name__)


class VerdictWriter(Callback):
    """Logs the verdict when training ends and writes it to `verdict.json`.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fit_end(self, state: State, logger: Logger) -> None:
        """Measure both models on the held-out rows, on all ranks, and judge."""
        del logger
        model = unwrapped(state.model)
        masks = model.masks
        if masks is None:
            return
        exact = _mean(held_out_losses(state))  # of the evaluation that ends every run
        soft = exact if masks.moment.settled else _mean(_soft_losses(state, model, masks))
        verdict = dataclasses.replace(masks.verdict(), soft_loss=soft, exact_loss=exact)
        if dist.get_global_rank() != 0:
            return
        write_json(self.directory / "verdict.json", verdict.as_dict())
        log.info("verdict on the masks\n%s", verdict.as_table())
        for problem in verdict.problems():
            log.warning("verdict: %s", problem)


def _soft_losses(state: State, model: ShearingModel, masks: Masks) -> dict[str, float]:
    """Held-out loss per domain without the cut to size, nats per token; on all ranks."""
    losses = {}
    model.eval()
    masks.cuts_evaluation = False
    try:
        for evaluator in state.evaluators:
            metric = state.device.module_to_device(HeldOutLoss())
            for batch in evaluator.dataloader.dataloader:
                moved = state.device.batch_to_device(batch)
                with torch.no_grad(), get_precision_context(state.precision):
                    model.update_metric(moved, model.eval_forward(moved), metric)
            losses[evaluator.label] = float(metric.compute())
    finally:
        masks.cuts_evaluation = True
        model.train()
    return losses


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None
