"""A run's checkpoint: its manifest, weights and mask logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.layout import find_checkpoint, manifest_of, read_manifest
from llmshearing.checkpoints.tensors import CheckpointTensors, open_checkpoint
from llmshearing.errors import UserError

MASK_PREFIX = "masks."
LOGITS_PREFIX = "masks.log_alpha."
ENTRIES = ("recipe", "source", "target", "data")  # of a manifest, that export reads


@dataclass(frozen=True)
class RunCheckpoint:
    """A whole checkpoint with its manifest.

    Attributes:
        path: the checkpoint, a file or a folder.
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

    @cached_property
    def tensors(self) -> CheckpointTensors:
        """The weights and masks, each read when it is asked for."""
        return open_checkpoint(self.path)

    def weights(self) -> dict[str, Tensor]:
        """The decoder's parameters and buffers under their Hugging Face names, all at once."""
        names = self.tensors.names()
        return {n: self.tensors.read(n) for n in names if not n.startswith(MASK_PREFIX)}

    def mask_logits(self) -> dict[str, Tensor]:
        """The mask logits per axis name."""
        names = [name for name in self.tensors.names() if name.startswith(LOGITS_PREFIX)]
        return {name.removeprefix(LOGITS_PREFIX): self.tensors.read(name) for name in names}


def open_run(path: str | Path) -> RunCheckpoint:
    """Open a run directory's latest checkpoint, or one checkpoint.

    Raises:
        UserError: neither, the checkpoint is not whole, or its manifest is of something else.
    """
    found = find_checkpoint(path)
    manifest = read_manifest(found)
    prunes = manifest.get("recipe", {}).get("target") is not None
    needed = (*ENTRIES, "masks") if prunes else ENTRIES
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise UserError(
            f"{manifest_of(found)} is no manifest of a run: it has no {', '.join(missing)}; "
            "take a checkpoint with its own manifest"
        )
    return RunCheckpoint(found, manifest)
