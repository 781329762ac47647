"""Writes the mask report at the end of a pruning run."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.held_out import at_end, measure
from llmshearing.callbacks.manifest_writer import held_out_losses
from llmshearing.callbacks.mask_start import MaskStart
from llmshearing.export.oneshot import kept_units
from llmshearing.files import write_json
from llmshearing.models.shearing import unwrapped
from llmshearing.pruning.mask_report import Comparison, common_units
from llmshearing.pruning.masks import Masks

log = logging.getLogger(__name__)

FILE = "mask_report.json"


class MaskReportWriter(Callback):
    """Logs the mask report and writes it to `mask_report.json` when training ends.

    It writes before the last checkpoint: a run whose last checkpoint is complete counts as
    finished. `start` has the scores and losses to compare with; `report` gives the watchdog the
    current activity.
    """

    def __init__(self, directory: Path, start: MaskStart, report: Callable[[str], None]) -> None:
        self.directory, self.start, self.report = directory, start, report
        self.written = False

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write after the last step."""
        if at_end(state) and not self.written:  # the last step may also end an epoch
            self._write(state)
            self.written = True

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write when the data is used up."""
        self.batch_checkpoint(state, logger)

    def _write(self, state: State) -> None:
        """Compare the model as trained with the model cut to size; all ranks call it together."""
        masks = unwrapped(state.model).masks
        if masks is None:
            return
        exact = _mean(held_out_losses(state))  # from the evaluation at the end of every run
        soft = exact if masks.state.frozen else _mean(_soft_losses(state, masks, self.report))
        report = dataclasses.replace(
            masks.report(), soft_loss=soft, exact_loss=exact, comparison=self._compare(state, masks)
        )
        if dist.get_global_rank() != 0:
            return
        write_json(self.directory / FILE, report.as_dict())
        log.info("%s", report.as_table())
        for problem in report.problems():
            log.warning("masks: %s", problem)

    def _compare(self, state: State, masks: Masks) -> Comparison | None:
        """The masks' choice next to that of a one-shot cut; None without scores."""
        scores = self.start.scores
        if scores is None or masks.target is None:
            return None
        best = kept_units(scores, masks.table, masks.target)
        kept = masks.kept()  # with a budget, an axis may keep every unit
        common = {a: common_units(kept[a], units, masks.sizes[a]) for a, units in best.items()}
        return Comparison(
            common,
            importance_loss=self.start.cut_loss(state, scores),
            oneshot_loss=self.start.oneshot_loss,
            steps=self.start.total,
        )


def _soft_losses(state: State, masks: Masks, report: Callable[[str], None]) -> dict[str, float]:
    """Held-out loss per domain without the cut to size, in nats per token."""
    masks.cuts_evaluation = False
    try:
        return measure(state, state.evaluators, lambda model, batch: model(batch)[:2], report)
    finally:
        masks.cuts_evaluation = True


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None
