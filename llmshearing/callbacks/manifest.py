"""What a run knows about itself, as JSON beside every checkpoint."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from safetensors.torch import save_file

from llmshearing.files import write_json
from llmshearing.models.shearing import unwrapped
from llmshearing.pruning.masks import Masks

PACKAGES = ("llmshearing", "torch", "transformers", "mosaicml", "mosaicml-streaming")


class ManifestWriter(Callback):
    """Writes `manifest.json` of the run, one beside each checkpoint, and the masks' scores.

    A checkpoint counts only once its manifest is there, so one cut short is never taken for whole.

    Args:
        directory: the run directory.
        facts: what does not change: recipe, source, target, data.
        mixture: gives the current domain weights.
    """

    def __init__(
        self,
        directory: Path,
        facts: dict[str, Any],
        mixture: Callable[[], dict[str, Any]],
    ) -> None:
        self.directory, self.facts, self.mixture = directory, facts, mixture
        self.losses_at: dict[str, Any] = {}

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Keep the masks' scores of every evaluation, for heat maps over time."""
        del logger
        model = unwrapped(state.model)
        # Whether the losses are those of the model that export would write at this batch.
        masks = model.masks
        exact = masks is None or masks.sizes_now() == {a: masks.target_sizes[a] for a in masks.axes}
        self.losses_at = {"batch": state.timestamp.batch.value, "exact": exact}
        if model.masks is not None:
            scores = {a.value: p for a, p in model.masks.keep_probabilities().items()}
            if dist.get_global_rank() == 0:
                path = self.directory / "masks" / f"ba{state.timestamp.batch.value}.safetensors"
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".partial")
                save_file(scores, temporary)
                temporary.replace(path)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After Composer's saver, which runs before (see `train.py`)."""
        del logger
        self._write(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """The run's last word."""
        del logger
        self._write(state)

    def _write(self, state: State) -> None:
        losses = held_out_losses(state)  # gathers over ranks, so before only one goes on
        if dist.get_global_rank() != 0:
            return
        batch = state.timestamp.batch.value
        masks = unwrapped(state.model).masks
        manifest = {
            **self.facts,
            "batch": batch,
            "losses": losses,
            "losses_at": self.losses_at,
            "mixture": self.mixture(),
            **({} if masks is None else mask_facts(masks)),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        checkpoint = self.directory / "checkpoints" / f"ba{batch}.pt"
        if checkpoint.exists():
            write_json(checkpoint.with_suffix(".json"), manifest)
            for stale in checkpoint.parent.glob("ba*.json"):
                if not stale.with_suffix(".pt").exists():
                    stale.unlink()
        write_json(self.directory / "manifest.json", manifest)


def held_out_losses(state: State) -> dict[str, float]:
    """The last held-out loss per domain, in nats per token."""
    losses = {}
    for domain, metrics in state.eval_metrics.items():
        metric = metrics["loss"]
        if metric.update_called:
            losses[domain] = float(metric.compute())
    return losses


def mask_facts(masks: Masks) -> dict[str, Any]:
    """The target shape, None while a budget has not come to one, and the schedule's moment."""
    target = None if masks.target is None else asdict(masks.target)
    return {"target": target, "masks": asdict(masks.moment)}
