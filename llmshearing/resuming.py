"""Which checkpoint a run resumes from, and whether that checkpoint fits its recipe."""

import logging
import time
from pathlib import Path

from composer.utils import dist

from llmshearing import optimization
from llmshearing.checkpoints.layout import (
    check_contents,
    read_manifest,
    resumed_checkpoint,
    step_of,
)
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checkpoints.resume_check import check_fits
from llmshearing.config import Recipe
from llmshearing.errors import UserError
from llmshearing.quantities import steps
from llmshearing.watchdog import log_phase

log = logging.getLogger(__name__)


def find_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint to resume from, the same on every rank; None for a new run.

    Raises:
        UserError: there is one, but `run.autoresume` is off, or checkpoints were removed.
    """
    found = resumed_checkpoint(recipe.run.directory)
    if found is not None and not recipe.run.autoresume:
        raise UserError(
            f"run.directory: {found.parent} holds {found.name}, but run.autoresume=false asks for "
            "a new run; give a new directory, or leave run.autoresume on to resume"
        )
    shared = [str(found) if found else None]
    dist.broadcast_object_list(shared, src=0)
    return None if shared[0] is None else Path(shared[0])


def check_checkpoint(checkpoint: Path, recipe: Recipe, manifest: RunManifest) -> None:
    """Compare a checkpoint with the run that resumes, log changes, and verify checksums.

    Raises:
        UserError: it belongs to another model, target or data, or its files are damaged.
    """
    for change in check_fits(checkpoint, manifest):
        log.warning("the recipe has changed since %s: %s", checkpoint.name, change)
    if recipe.prunes:
        warn_masks_reopened(checkpoint, recipe)
    if is_finished(checkpoint, recipe):
        return
    begun = time.monotonic()
    check_contents(checkpoint)
    log_phase("checkpoint checksums", time.monotonic() - begun)


def is_finished(checkpoint: Path, recipe: Recipe) -> bool:
    """Whether the checkpoint is already at the end of the run."""
    return step_of(checkpoint) >= steps(recipe.run.duration)


def warn_masks_reopened(checkpoint: Path, recipe: Recipe) -> None:
    """Warn if another `run.duration` moves the masks back on their schedule."""
    was = read_manifest(checkpoint).masks
    now = optimization.mask_schedule(recipe).at(step_of(checkpoint))
    if was and (now.ramp < was.ramp or (was.frozen and not now.frozen)):
        log.warning(
            "%s is further along the mask schedule than run.duration=%s implies, so frozen masks "
            "will be trained again. To keep the current choice, export this checkpoint and "
            "continue from the export.",
            checkpoint.name,
            recipe.run.duration,
        )
