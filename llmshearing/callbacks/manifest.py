"""What a run knows about itself, as JSON, and the masks' scores over time."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from safetensors.torch import save

from llmshearing.files import write_bytes, write_json
from llmshearing.models.shearing import unwrapped
from llmshearing.pruning.masks import Masks

PACKAGES = ("llmshearing", "torch", "transformers", "mosaicml", "mosaicml-streaming")


class ManifestWriter(Callback):
    """Writes `manifest.json` of the run and the masks' scores.

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
        self.losses: dict[str, float] = {}

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Keep the masks of every evaluation: scores, and the units that the cut then kept."""
        del logger
        self.losses = held_out_losses(state)
        model = unwrapped(state.model)
        # Whether the losses are those of the model that export would write at this batch.
        masks = model.masks
        exact = masks is None or masks.sizes_now() == {a: masks.target_sizes[a] for a in masks.axes}
        self.losses_at = {"batch": state.timestamp.batch.value, "exact": exact}
        self._write(state)
        if masks is not None:
            scores, kept = masks.keep_probabilities(), masks.kept()
            tensors = {axis.value: score for axis, score in scores.items()}
            tensors |= {f"{axis.value}.kept": units for axis, units in kept.items()}
            if dist.get_global_rank() == 0:
                name = f"ba{state.timestamp.batch.value}.safetensors"
                write_bytes(self.directory / "masks" / name, save(tensors))

    def fit_end(self, state: State, logger: Logger) -> None:
        """Say the last word."""
        del logger
        self._write(state)

    def manifest(self, state: State) -> dict[str, Any]:
        """What there is to say now."""
        masks = unwrapped(state.model).masks
        return {
            **self.facts,
            "batch": state.timestamp.batch.value,
            "losses": self.losses,
            "losses_at": self.losses_at,
            "mixture": self.mixture(),
            **({} if masks is None else mask_facts(masks)),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def state_dict(self) -> dict[str, Any]:
        """The losses of the last evaluation, which a checkpoint between two repeats."""
        return {"losses": self.losses, "losses_at": self.losses_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.losses, self.losses_at = state["losses"], state["losses_at"]

    def _write(self, state: State) -> None:
        if dist.get_global_rank() == 0:
            write_json(self.directory / "manifest.json", self.manifest(state))


def held_out_losses(state: State) -> dict[str, float]:
    """The last held-out loss per domain, in nats per token; gathered over ranks."""
    losses = {}
    for domain, metrics in state.eval_metrics.items():
        metric = metrics["loss"]
        if metric.update_called:
            losses[domain] = float(metric.compute())
    return losses


def mask_facts(masks: Masks) -> dict[str, Any]:
    """The target shape, None while a budget has not come to one, and the schedule's moment."""
    target = None if masks.target is None else asdict(masks.target)
    return {"target": target, "masks": asdict(masks.state)}
