"""Loaded weights must have the held-out loss that their directory records.

An exported directory records its model's loss on certain rows. A run that evaluates on the same
rows measures that loss again before its first step, which reveals weights that are damaged or
loaded wrongly.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor

from llmshearing.callbacks.held_out import measure
from llmshearing.checkpoints.manifest import EXPORT_FILE, DataRecord, ExportManifest, LossesAt
from llmshearing.errors import UserError
from llmshearing.models.gated import set_gates
from llmshearing.models.head import TokenLosses
from llmshearing.models.shearing import Batch, ShearingModel

log = logging.getLogger(__name__)

# Rounding weights to bfloat16, and activations in training, changes a loss by a few thousandths.
TOLERANCE = 0.01


class LoadedLoss(Callback):
    """Stops a run whose loaded weights do not have the loss that their directory records."""

    def __init__(self, directory: Path, data: DataRecord, report: Callable[[str], None]) -> None:
        self.directory, self.report = directory, report
        self.stored = stored_losses(directory, data)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Measure and compare, unless the run resumes from a checkpoint."""
        if not self.stored or state.timestamp.batch.value > 0:
            return
        with torch.random.fork_rng(devices=[]):  # the loaders use the generator
            domains = [e for e in state.evaluators if e.label in self.stored]
            found = measure(state, domains, _without_masks, self.report)
        log.info(
            "held-out loss of the loaded weights, and as recorded with them: %s",
            ", ".join(f"{n} {found[n]:.4f} {self.stored[n]:.4f}" for n in found),
        )
        wrong = [
            f"{name} {found[name]:.4f} instead of {expected:.4f}"
            for name, expected in self.stored.items()
            if not abs(found[name] - expected) <= TOLERANCE * expected
        ]
        if wrong:
            raise UserError(
                f"the weights loaded from {self.directory} do not have the held-out loss that its "
                f"{EXPORT_FILE} records, to {TOLERANCE:.0%}: {', '.join(wrong)}. They are not the "
                f"weights that were exported: export them again, or remove {EXPORT_FILE} if they "
                "were changed on purpose"
            )


def stored_losses(directory: Path, data: DataRecord) -> dict[str, float]:
    """The losses in a directory's manifest, if they are of its own weights and the run's rows.

    Nats per token by domain; empty if there is nothing to compare.
    """
    manifest = ExportManifest.read(directory)
    run = None if manifest is None else manifest.run
    if run is None:
        return {}
    if run.losses_at != LossesAt(run.batch, exact=True):
        log.info("%s has no held-out loss of its own weights to compare with", directory)
        return {}
    if not run.data.evaluates_like(data):
        log.info("the held-out loss in %s is of other rows, so it is not compared", directory)
        return {}
    return run.losses


def _without_masks(model: ShearingModel, batch: Batch) -> tuple[TokenLosses, Tensor]:
    if model.masks is not None:
        set_gates(model.sites, model.masks.table, {})
    return model.decoder_losses(batch)
