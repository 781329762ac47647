"""Writes a run's manifest, and the masks' scores over time."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.mask_start import IMPORTANCE_FILE
from llmshearing.checkpoints.manifest import RUN_FILE, LossesAt, RunManifest
from llmshearing.checksums import record_file
from llmshearing.models.shearing import unwrapped
from llmshearing.tensor_files import write_tensors

PACKAGES = ("llmshearing", "torch", "transformers", "mosaicml", "mosaicml-streaming")


class ManifestWriter(Callback):
    """Writes `manifest.json` of the run, `fixed` with what changes, and the masks' scores."""

    def __init__(
        self,
        directory: Path,
        fixed: RunManifest,
        mixture: Callable[[], dict[str, Any]],
    ) -> None:
        self.directory, self.fixed, self.mixture = directory, fixed, mixture
        self.losses_at: LossesAt | None = None
        self.losses: dict[str, float] = {}

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Write the masks of every evaluation: scores, and the units that its cut kept."""
        self.losses = held_out_losses(state)
        model = unwrapped(state.model)
        # Whether the losses are those of the model that export would write at this batch.
        masks = model.masks
        exact = masks is None or masks.sizes_now() == {a: masks.target_sizes[a] for a in masks.axes}
        self.losses_at = LossesAt(state.timestamp.batch.value, exact)
        self._write(state)
        if masks is not None:
            scores, kept = masks.keep_probabilities(), masks.kept()
            tensors = {axis.value: score.numpy(force=True) for axis, score in scores.items()}
            tensors |= {f"{a.value}.kept": units.numpy(force=True) for a, units in kept.items()}
            if dist.get_global_rank() == 0:
                name = f"ba{state.timestamp.batch.value}.safetensors"
                write_tensors(self.directory / "masks" / name, tensors)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the manifest of the finished run."""
        self._write(state)

    def manifest(self, state: State) -> RunManifest:
        """The manifest at this step."""
        masks, scores = unwrapped(state.model).masks, self.directory / IMPORTANCE_FILE
        return replace(
            self.fixed,
            batch=state.timestamp.batch.value,
            losses=self.losses,
            losses_at=self.losses_at,
            mixture=self.mixture(),
            target=None if masks is None else masks.target,
            masks=None if masks is None else masks.state,
            importance=record_file(scores) if scores.is_file() else None,
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
        )

    def state_dict(self) -> dict[str, Any]:
        """The losses of the last evaluation, for checkpoints between two evaluations."""
        return {"losses": self.losses, "losses_at": self.losses_at and asdict(self.losses_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self.losses = state["losses"]
        self.losses_at = LossesAt(**state["losses_at"]) if state["losses_at"] else None

    def _write(self, state: State) -> None:
        if dist.get_global_rank() == 0:
            self.manifest(state).write(self.directory / RUN_FILE)


def held_out_losses(state: State) -> dict[str, float]:
    """The last held-out loss per domain, in nats per token; gathered over ranks."""
    losses = {}
    for domain, metrics in state.eval_metrics.items():
        metric = metrics["loss"]
        if metric.update_called:
            losses[domain] = float(metric.compute())
    return losses
