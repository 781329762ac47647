"""When checkpoints are written and read."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.checkpoints.layout import checkpoint_path
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checkpoints.restoring import restore, restore_generators, save
from llmshearing.checkpoints.writing import keep_last, on_first_rank

log = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Writes a checkpoint at every interval and at the end, keeps the last ones, and resumes.

    It comes after every callback that changes what is saved, and before what reads checkpoints.

    Args:
        directory: of the run.
        due: whether to save now, from the trainer's state and the event.
        kind: `full` or `sharded`.
        keep: whole checkpoints that stay; -1 keeps all.
        manifest: gives the run's manifest at this step.
        before: called first, to write what must be on disk before the checkpoint.
        resume: the checkpoint to resume from, of either kind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        due: Callable[[State, Event], bool],
        kind: str,
        keep: int,
        manifest: Callable[[State], RunManifest],
        before: Callable[[State], None],
        resume: str | Path | None = None,
    ) -> None:
        self.directory, self.kind, self.keep, self.manifest = directory, kind, keep, manifest
        self.before = before
        self.resume = None if resume is None else Path(resume)
        self.due = due
        self.generators: list[dict[str, Any]] | None = None
        self.saved: int | None = None
        self.latest = self.resume

    def after_load(self, state: State, logger: Logger) -> None:
        """Restore, once the model is sharded and before anything else wraps it."""
        if self.resume is not None:
            self.generators = restore(self.resume, state, logger)
            self.saved = state.timestamp.batch.value

    def batch_start(self, state: State, logger: Logger) -> None:
        """Restore the random generators only now: starting the loader has drawn from them."""
        if self.generators is not None:
            restore_generators(self.generators)
            self.generators = None

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if a checkpoint is due."""
        if self.due(state, Event.BATCH_CHECKPOINT):
            self.save(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save at the end of a run whose data is used up."""
        if self.due(state, Event.EPOCH_CHECKPOINT):
            self.save(state)

    def save(self, state: State) -> None:
        """Save now, unless this step is saved already. All ranks call it.

        Raises:
            UserError: on every rank, if it cannot be written; earlier checkpoints stay.
        """
        step = state.timestamp.batch.value
        if step == self.saved:
            return
        self.before(state)
        path = checkpoint_path(self.directory, step, self.kind)
        save(path, state, self.manifest(state))
        self.saved, self.latest = step, path
        on_first_rank(lambda: keep_last(self.directory, self.keep), path)
        if dist.get_global_rank() == 0:
            log.debug("checkpoint %s is whole", path)
