"""One way to read the weights of either kind of checkpoint, tensor by tensor.

    checkpoint = open_checkpoint("runs/prune")        # or .../checkpoints/ba100.pt, .../ba200
    checkpoint.names()            # ["lm_head.weight", ..., "masks.log_alpha.head", ...]
    checkpoint.shape(name)        # (4096, 128), known without reading the tensor
    checkpoint.dtype(name)        # torch.float32
    checkpoint.read(name)         # the whole tensor, on the CPU
    checkpoint.manifest           # the JSON next to the checkpoint

Names are the stock Transformers model's; those of masks begin with `masks.`. Beyond the checksums,
nothing is read before it is asked for: a full checkpoint is mapped into memory; of a sharded one,
the pieces of a tensor are read and assembled. A tensor of a full checkpoint is a view of the file,
so clone it before changing it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner

from llmshearing.checkpoints.layout import check_contents, find_checkpoint, kind_of, read_manifest
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checkpoints.safe_reading import (
    UNREADABLE,
    SafeReader,
    load_trainer_state,
    not_whole,
)

MODEL_PREFIX = "model."  # the trained module holds the stock model under this name, next to masks
LOGITS_PREFIX = "masks.log_alpha."
SCALE_PREFIX = "masks.gate_scale_"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its manifest, weights and masks."""

    path: Path  # a file or a folder
    manifest: RunManifest  # the JSON next to it
    stored: Mapping[str, Tensor]  # by name, a tensor of the stored shape and dtype
    load: Callable[[str], Tensor]  # gives a tensor

    @property
    def config(self) -> dict[str, Any]:
        """The Hugging Face config of the model that the run trained."""
        return self.manifest.source.config

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.stored[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.stored[name].dtype

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU; a UserError if it cannot be read."""
        try:
            return self.load(name)
        except UNREADABLE as error:
            raise not_whole(self.path, error) from error

    def mask_logits(self) -> dict[str, Tensor]:
        """The mask logits per axis name."""
        return self._by_axis(LOGITS_PREFIX)

    def gate_scales(self) -> dict[str, Tensor]:
        """The factors on the logits before they become gates, per axis name."""
        return self._by_axis(SCALE_PREFIX)

    def _by_axis(self, prefix: str) -> dict[str, Tensor]:
        names = [name for name in self.names() if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name) for name in names}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint of either kind, or a run directory's latest, after checking its checksums.

    Raises:
        UserError: there is none, or it is not whole, or damaged.
    """
    found = find_checkpoint(path)
    check_contents(found)
    opener = _open_full if kind_of(found) == "full" else _open_sharded
    return opener(found, read_manifest(found))


def _open_full(path: Path, manifest: RunManifest) -> Checkpoint:
    try:
        state = load_trainer_state(path)["state"]["model"]
        tensors: dict[str, Tensor] = {key.removeprefix(MODEL_PREFIX): state[key] for key in state}
    except UNREADABLE as error:
        raise not_whole(path, error) from error
    return Checkpoint(path, manifest, tensors, tensors.__getitem__)


def _open_sharded(path: Path, manifest: RunManifest) -> Checkpoint:
    reader = SafeReader(path)
    index = reader.read_metadata()
    keys, stored = {}, {}
    for key, entry in index.state_dict_metadata.items():
        # The state dict is nested, and the index joins the names: `model.` comes once or twice.
        name = key.removeprefix(MODEL_PREFIX).removeprefix(MODEL_PREFIX)
        if key.startswith(MODEL_PREFIX):
            dtype = entry.properties.dtype  # pyright: ignore[reportAttributeAccessIssue]
            stored[name] = torch.empty(entry.size, dtype=dtype, device="meta")  # pyright: ignore[reportAttributeAccessIssue]
            keys[name] = key

    def load(name: str) -> Tensor:
        whole = torch.empty_like(stored[name], device="cpu")
        planner = DefaultLoadPlanner()
        planner.set_up_planner({keys[name]: whole}, index, is_coordinator=True)
        reader.set_up_storage_reader(index, is_coordinator=True)
        plan = planner.create_global_plan([planner.create_local_plan()])[0]
        reader.read_data(plan, planner).wait()
        return whole

    return Checkpoint(path, manifest, stored, load)
