"""Reading a checkpoint's files without running anything that they name."""

import datetime
import pickle
from pathlib import Path, PosixPath
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.torch_version import TorchVersion

from llmshearing.checkpoints.layout import read_manifest
from llmshearing.errors import UserError
from llmshearing.substrate import PythonUnpickler

METADATA = ".metadata"

# What reading a damaged file raises.
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    UnpicklingError,
    AttributeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
)

# What an index consists of, besides torch's dtypes. BytesStorageMetadata is left out: torch's
# planner unpickles such an entry without restriction, and no checkpoint of ours has one.
INDEX_CLASSES = {
    ("collections", "OrderedDict"),
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

PATHLIB = ("pathlib", "pathlib._local")  # where versions of Python keep their classes of paths


class SafeReader(FileSystemReader):
    """Reads a sharded checkpoint whose index can only be an index of tensors in its own files.

    torch unpickles the index without restriction, and then every entry that the index calls bytes,
    so a checkpoint from elsewhere could run code. Here the index is refused if it contains
    anything but the places of tensors.
    """

    def read_metadata(self) -> Metadata:
        """The index: which tensor is where; a UserError if it is damaged or has anything else."""
        folder = Path(self.path)
        files = {Path(name).name for name in read_manifest(folder).files}
        try:
            with (folder / METADATA).open("rb") as file:
                index = _IndexUnpickler(file).load()
            _check_index(index, files)
        except UNREADABLE as error:
            raise not_whole(folder / METADATA, error) from error
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


def not_whole(path: Path, error: BaseException) -> UserError:
    """The message about a checkpoint that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is not a whole checkpoint ({reason}); take an earlier one")


def _check_index(index: Any, files: set[str]) -> None:
    """Refuse types that torch's planner and reader do not expect, and files of others."""
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
        if name == "PosixPath" and module in PATHLIB:
            return PosixPath
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


# What a trainer's checkpoint contains besides tensors and Python's own types: NumPy's generator
# state and Composer's clock.
PLAIN_CLASSES: tuple[Any, ...] = (
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np.empty(0).__reduce__()[0],  # the function that rebuilds a pickled array
)
CLOCK_CLASSES = ("Time", "Timestamp", "TimeUnit")


class _Unread:
    """Stands in for a class of Composer where only tensors are wanted, and keeps nothing."""

    def __new__(cls, *arguments: Any) -> "_Unread":
        del arguments
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


def load_trainer_state(path: str | Path, clock: Any = None) -> dict[str, Any]:
    """Read a full checkpoint, or the `trainer.pt` of a sharded one; tensors are mapped.

    Without `clock`, the module `composer.core.time`, the clock is not read.

    Raises:
        UnpicklingError: it names other classes than a trainer's state contains.
    """
    classes: list[Any] = [
        (getattr(clock, name, _Unread), f"composer.core.time.{name}") for name in CLOCK_CLASSES
    ]
    with torch.serialization.safe_globals([*PLAIN_CLASSES, *classes]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
