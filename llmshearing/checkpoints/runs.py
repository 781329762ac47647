"""Reading a run's checkpoint: its manifest, weights and mask logits."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from composer.core.time import Time, Timestamp, TimeUnit
from numpy._core.multiarray import _reconstruct  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor
from torch.torch_version import TorchVersion

from llmshearing.architecture.shape import Shape
from llmshearing.errors import UserError

# What a trainer checkpoint holds besides tensors and Python's own types: Composer's clock, and
# NumPy's generator state.
TRAINER_CLASSES = [
    Time,
    Timestamp,
    TimeUnit,
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    _reconstruct,
]
MODEL_PREFIX = "model."
MASK_PREFIX = "masks.log_alpha."


@dataclass(frozen=True)
class RunCheckpoint:
    """A whole checkpoint with its manifest.

    Attributes:
        path: the checkpoint file.
        manifest: the JSON beside it.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe of the run."""
        return self.manifest["recipe"]

    @property
    def config(self) -> dict[str, Any]:
        """The Hugging Face config of the model that the run trained."""
        return self.manifest["source"]["config"]

    @property
    def source_path(self) -> Path:
        """The Hugging Face directory that the run started from."""
        return Path(self.manifest["source"]["path"])

    @property
    def target(self) -> Shape | None:
        """The exact shape that the run prunes to, or None where it does not prune."""
        target = self.manifest["target"]
        return None if target is None else Shape(**target)

    def weights(self) -> dict[str, Tensor]:
        """The decoder's parameters and buffers under their Hugging Face names."""
        return self._with_prefix(MODEL_PREFIX)

    def mask_logits(self) -> dict[str, Tensor]:
        """The mask logits per axis name."""
        return self._with_prefix(MASK_PREFIX)

    def _with_prefix(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self._state.items() if k.startswith(prefix)}

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        try:
            return load_trainer_state(self.path)["state"]["model"]
        except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
            raise UserError(
                f"{self.path} is not a whole checkpoint ({error}); take an earlier one"
            ) from error


def load_trainer_state(path: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a trainer checkpoint as tensors and plain values; nothing in it can run code."""
    with torch.serialization.safe_globals(TRAINER_CLASSES):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)


def open_run(path: str | Path) -> RunCheckpoint:
    """Open a run directory's latest checkpoint, or one checkpoint file.

    Raises:
        UserError: neither, or no checkpoint is whole.
    """
    path = Path(path)
    if path.is_file():
        file = path
    else:
        latest = latest_checkpoint(path)
        if latest is None:
            raise UserError(
                f"found no checkpoint in {path}; expected a run directory with "
                "checkpoints/ba<N>.pt and its ba<N>.json, or the path of such a file"
            )
        file = latest
    manifest = file.with_suffix(".json")
    if not manifest.is_file():
        raise UserError(
            f"found no {manifest.name} beside {file}: this checkpoint was cut short or comes from "
            "elsewhere; take an earlier one"
        )
    return RunCheckpoint(file, json.loads(manifest.read_text(encoding="utf-8")))


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest whole checkpoint of a run directory; whole means that its manifest is there."""
    manifests = Path(directory, "checkpoints").glob("ba*.json")
    whole = [m.with_suffix(".pt") for m in manifests if m.with_suffix(".pt").is_file()]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: str | Path) -> int:
    """The step at which a checkpoint `ba<N>.pt` was written."""
    return int(Path(checkpoint).stem[2:])
