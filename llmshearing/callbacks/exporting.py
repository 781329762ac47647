"""Exports of a run while it goes on, to benchmark or serve them before its end."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger

from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.callbacks.held_out import at_end
from llmshearing.errors import UserError
from llmshearing.models.shearing import unwrapped
from llmshearing.parallelism import on_first_rank

log = logging.getLogger(__name__)

FOLDER = "exports"


class Exporting(Callback):
    """Exports the checkpoint of every interval, and the last one, to `exports/ba<N>`.

    It is what `llmshearing export` writes, without the comparison of logits, which would need a
    second model in memory. Masks that are still learning are cut at their target, as
    `--allow-undecided` does. It comes after `Checkpointing`, whose checkpoint it reads.

    Args:
        directory: of the run.
        interval: in steps.
        checkpointing: saves a checkpoint where none is due.
        report: called with the current activity, for the watchdog.
    """

    def __init__(
        self,
        directory: Path,
        interval: int,
        checkpointing: Checkpointing,
        report: Callable[[str], None],
    ) -> None:
        self.directory, self.interval = directory, interval
        self.checkpointing, self.report = checkpointing, report

    def fit_start(self, state: State, logger: Logger) -> None:
        """Export what a resumed run saved, but was killed before it exported."""
        self._export_if_due(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if an interval or the run is over."""
        self._export_if_due(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export at the end of a run whose data is used up."""
        self._export_if_due(state)

    def _export_if_due(self, state: State) -> None:
        step = state.timestamp.batch.value
        if step == 0 or not (step % self.interval == 0 or at_end(state)):
            return
        masks = unwrapped(state.model).masks
        if masks is not None and masks.target is None:
            log.warning("no export at step %d: the masks have not fixed their shape yet", step)
            return
        out = self.directory / FOLDER / f"ba{step}"
        self.checkpointing.save(state)
        self.report(f"the export at step {step}")
        on_first_rank(lambda: out.exists() or self._export(out))

    def _export(self, out: Path) -> None:
        # A process of its own: reading a checkpoint is a collective operation inside a run.
        words = ["export", str(self.checkpointing.latest), str(out)]
        words += ["--no-verify", "--allow-undecided"]
        command = [sys.executable, "-m", "llmshearing.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"cannot export {out}: {done.stderr.strip().removeprefix('error: ')}")
        log.info("exported %s", out)
