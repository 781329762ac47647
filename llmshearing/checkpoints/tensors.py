"""One way to read the weights of either kind of checkpoint, tensor by tensor.

    checkpoint = open_checkpoint("runs/prune")        # or .../checkpoints/ba100.pt, .../ba200
    checkpoint.names()            # ["lm_head.weight", ..., "masks.log_alpha.head", ...]
    checkpoint.shape(name)        # (4096, 128), known without reading the tensor
    checkpoint.dtype(name)        # torch.float32
    checkpoint.read(name)         # the whole tensor, on the CPU
    checkpoint.manifest           # the JSON beside the checkpoint

Names are the stock Transformers model's; the masks' begin with `masks.`. Nothing is read before it
is asked for: a full checkpoint is mapped into memory, of a sharded one the pieces of a tensor are
read and put together. A tensor of a full checkpoint is a view of the file, so whoever changes it
clones it first. Only tensors and plain values are ever unpickled.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from llmshearing.checkpoints.layout import (
    FILES,
    check_contents,
    find_checkpoint,
    kind_of,
    read_manifest,
)
from llmshearing.checkpoints.trainer_state import load_trainer_state
from llmshearing.errors import UserError
from llmshearing.substrate import PythonUnpickler

MODEL_PREFIX = "model."  # the trained module holds the stock model under this name, masks beside it
METADATA = ".metadata"

# What the index of a sharded checkpoint consists of, besides torch's dtypes. BytesStorageMetadata
# is left out: torch's planner unpickles such an entry without restriction, and we save none.
INDEX_CLASSES = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}
# What reading a damaged file raises.
UNREADABLE = (RuntimeError, EOFError, OSError, UnpicklingError)


class CheckpointTensors(ABC):
    """A checkpoint's weights and masks by name.

    Attributes:
        path: the checkpoint, a file or a folder.
        manifest: the JSON beside it.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @abstractmethod
    def names(self) -> list[str]:
        """All names, sorted."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU."""


def open_checkpoint(path: str | Path) -> CheckpointTensors:
    """Open a checkpoint of either kind, or a run directory's latest; its checksums are compared.

    Raises:
        UserError: there is none, or it is not whole, or damaged.
    """
    found = find_checkpoint(path)
    check_contents(found)
    return _READERS[kind_of(found)](found, read_manifest(found))


class FullTensors(CheckpointTensors):
    """The tensors of a checkpoint that is one file, mapped into memory."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        super().__init__(path, manifest)
        try:
            state = load_trainer_state(path)["state"]["model"]
            self._tensors: dict[str, Tensor] = {own_name(n): state[n] for n in state}
        except (*UNREADABLE, KeyError, TypeError) as error:
            raise not_whole(path, error) from error

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the file."""
        return self._tensors[name]


class ShardedTensors(CheckpointTensors):
    """The tensors of a checkpoint that is a folder, each put together from its pieces."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        super().__init__(path, manifest)
        self._reader = SafeReader(path)
        self._index = self._reader.read_metadata()
        entries: dict[str, Any] = self._index.state_dict_metadata
        self._stored: dict[str, tuple[str, TensorStorageMetadata]] = {
            own_name(key.removeprefix(MODEL_PREFIX)): (key, entry)
            for key, entry in entries.items()
            if key.startswith(MODEL_PREFIX)
        }

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._stored[name][1].size)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self._stored[name][1].properties.dtype

    def read(self, name: str) -> Tensor:
        """The whole tensor, from the files that hold its pieces."""
        key, entry = self._stored[name]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        planner = DefaultLoadPlanner()
        planner.set_up_planner({key: whole}, self._index, is_coordinator=True)
        self._reader.set_up_storage_reader(self._index, is_coordinator=True)
        try:
            plan = planner.create_global_plan([planner.create_local_plan()])[0]
            self._reader.read_data(plan, planner).wait()
        except (*UNREADABLE, KeyError, ValueError, AssertionError) as error:
            raise not_whole(self.path, error) from error
        return whole


_READERS: dict[str, type[CheckpointTensors]] = {"full": FullTensors, "sharded": ShardedTensors}


class SafeReader(FileSystemReader):
    """Reads a sharded checkpoint whose index can only be an index of tensors in its own files.

    torch unpickles the index (`.metadata`) without restriction, and then every entry that the index
    calls bytes, so that a checkpoint from elsewhere could run code. Here the index is refused if it
    contains anything but the places of tensors.
    """

    def read_metadata(self) -> Metadata:
        """The index: which tensor is where.

        Raises:
            UserError: it is damaged, or contains something else.
        """
        folder = Path(self.path)
        try:
            with (folder / METADATA).open("rb") as file:
                index = _IndexUnpickler(file).load()
            _check_index(index, {Path(name).name for name in read_manifest(folder).get(FILES, {})})
        except (*UNREADABLE, AttributeError, ValueError, TypeError, LookupError) as error:
            raise not_whole(folder / METADATA, error) from error
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


def _check_index(index: Any, files: set[str]) -> None:
    """See that an index has the types that torch's planner and reader rely on.

    Raises:
        UnpicklingError: it has others, or names a file that the checkpoint does not have.
    """
    if type(index) is not Metadata:
        raise UnpicklingError(f"found {type(index).__name__}, expected Metadata")
    for key, entry in index.state_dict_metadata.items():
        if type(entry) is not TensorStorageMetadata:
            raise UnpicklingError(f"{key} is {type(entry).__name__}, expected a tensor")
        if type(entry.properties.dtype) is not torch.dtype or type(entry.size) is not torch.Size:
            raise UnpicklingError(f"{key} has no dtype or no size")
    for place in (index.storage_data or {}).values():
        if place.relative_path not in files:
            raise UnpicklingError(f"it names the file {place.relative_path}, expected its own")


class _IndexUnpickler(PythonUnpickler):
    """Makes objects of INDEX_CLASSES only, and changes no class."""

    dispatch: ClassVar[dict[int, Any]] = dict(PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in INDEX_CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise UnpicklingError(f"it names {module}.{name}, which no index contains")

    def load_build(self) -> None:
        if not type(self.stack[-2]).__module__.startswith("torch.distributed.checkpoint."):
            raise UnpicklingError("it sets attributes of something that no index contains")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def own_name(key: str) -> str:
    """The stock model's name of a key of the trained module; masks keep theirs."""
    return key.removeprefix(MODEL_PREFIX)


def not_whole(path: Path, error: BaseException) -> UserError:
    """The message about a checkpoint that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is not a whole checkpoint ({reason}); take an earlier one")
