"""The weight files of a Hugging Face directory: read by tensor, written by file.

Only headers are read at first. A tensor that is read is mapped from its file and released with it,
so memory holds what is being copied and nothing else; files that torch wrote before version 1.6
cannot be mapped and are held whole. Writing holds the tensors of one file.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import xxhash
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmshearing.checkpoints.manifest import EXPORT_FILE, ExportManifest
from llmshearing.checksums import FileRecord, check_files, record_files, record_shared
from llmshearing.errors import UserError
from llmshearing.files import refuse_pointer, write_json
from llmshearing.huggingface import hub
from llmshearing.quantities import byte_size

# Weights of any other type are quantised, and mean nothing without their scales. Files may contain
# more than weights, such as the attention masks in Pythia's.
FLOATING = {"F64", "F32", "F16", "BF16"} | {
    str(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
UNREADABLE = (SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError, ValueError)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's weight file, its shape, and the name of its type in that file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class WeightFiles:
    """The tensors of a directory by name: safetensors, or else PyTorch's files.

    Weights are in one file, or in several with an index. What is missing in a directory of the
    hub's cache is downloaded.

    Raises:
        UserError: there are no weights, or a file is missing, truncated or not a weight file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stored: dict[str, StoredTensor] = {}
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        for file in find_weights(self.path):
            refuse_pointer(file)
            read = _header if file.suffix == ".safetensors" else _pickled_header
            try:
                self.stored |= read(file)
            except UNREADABLE as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise UserError(
                    f"{file} is truncated or not a weight file ({reason}); copy or download it "
                    "again"
                ) from error

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some of its rows, in the dtype of its file; a view to be copied."""
        self.check_floating(name)
        file = self.stored[name].file
        if file.suffix != ".safetensors":
            if file not in self._pickled:
                self._pickled[file] = _unpickle(file, "cpu", mmap=zipfile.is_zipfile(file))
            return self._pickled[file][name][rows]
        with safe_open(file, framework="pt") as opened:
            if not self.stored[name].shape:
                return opened.get_tensor(name)
            return opened.get_slice(name)[rows]

    def check_floating(self, name: str) -> None:
        """Refuse a weight that is quantised with a UserError."""
        found = self.stored[name]
        if found.dtype not in FLOATING:
            raise UserError(
                f"found {name} as {found.dtype} in {found.file}, expected floating-point "
                "weights; take the model that is not quantised"
            )

    def check_contents(self) -> None:
        """Compare the files with the checksums in the directory's manifest, if it has any.

        All ranks call it; each reads its share.

        Raises:
            UserError: on every rank, if a file is missing or has changed since it was written.
        """
        manifest, path = ExportManifest.read(self.path), self.path / EXPORT_FILE
        if manifest is not None:
            remedy = f"Export it again, or remove {path} if it was changed on purpose"
            check_files(self.path, manifest.files, path, remedy)


def write_weights(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_size: int | str,
) -> None:
    """Write `model.safetensors`, or several files with their index.

    The shapes decide the files before the first is written. Each tensor comes once; in the order of
    the shapes, only one file is in memory. A file has at most `max_shard_size` bytes (or a text
    such as `5GB`); a larger tensor has its own.

    Raises:
        UserError: `max_shard_size` is not a size.
        ValueError: the tensors are not those of `shapes`.
    """
    empty = {n: torch.empty(shape, dtype=dtype, device="meta") for n, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=parse_size(max_shard_size))
    waiting = {file: set(names) for file, names in split.filename_to_tensors.items()}
    ready: dict[str, dict[str, Tensor]] = {file: {} for file in waiting}
    for name, tensor in tensors:
        file = split.tensor_to_filename.get(name, "")
        if name not in waiting.get(file, ()) or tensor.shape != empty[name].shape:
            raise ValueError(f"found {name} of {list(tensor.shape)}, expected {shapes.get(name)}")
        waiting[file].remove(name)
        ready[file][name] = tensor.to(dtype).contiguous()
        if not waiting[file]:
            save_file(ready.pop(file), directory / file, metadata={"format": "pt"})
            with (directory / file).open("rb+") as written:
                os.fsync(written.fileno())
    missing = sorted(name for names in waiting.values() for name in names)
    if missing:
        raise ValueError(f"found no {', '.join(missing)}")
    if split.is_sharded:
        metadata = {"total_size": split.metadata["total_size"]}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / "model.safetensors.index.json", index)


def parse_size(text: int | str) -> int:
    """Bytes of a size such as `5GB`; a UserError if it is none."""
    try:
        if size := byte_size(text):
            return size
    except ValueError:
        pass
    raise UserError(f"found the shard size {text!r}, expected a size such as 5GB or 500MB")


def weight_records(path: Path) -> dict[str, FileRecord]:
    """Size and checksum of a directory's weight files, for its manifest."""
    return record_files({file.name: file for file in find_weights(path)})


def weights_digest(path: Path) -> str:
    """A digest of a directory's weight files by name. All ranks call it; each reads its share."""
    files = {file.name: file for file in _weight_files(path)}
    records = record_shared(files)
    listed = sorted((name, record.bytes, record.xxh3_128) for name, record in records.items())
    return xxhash.xxh3_128_hexdigest(repr(listed).encode())


def _header(file: Path) -> dict[str, StoredTensor]:
    with safe_open(file, framework="pt") as opened:
        slices: dict[str, Any] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def are_still_on_the_hub(path: Path) -> bool:
    """Whether the weights of a directory have to be downloaded before they can be read."""
    return hub.repository_of(path) is not None and not (
        any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    )


def find_weights(path: Path) -> list[Path]:
    """The weight files of a directory; those of the hub are downloaded first.

    Raises:
        UserError: there are none, or the hub does not give them.
    """
    repository = hub.repository_of(path)
    try:
        return _weight_files(path)
    except UserError:
        if repository is None:
            raise
    hub.fetch_weights(path)
    try:
        return _weight_files(path)
    except UserError as error:
        raise UserError(
            f"found no whole weights of {repository}, neither on the hub nor, without network, in "
            f"its cache ({error})"
        ) from error


def _pickled_header(file: Path) -> dict[str, StoredTensor]:
    tensors = _unpickle(file, "meta", mmap=False)
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError("expected tensors by name and nothing else")
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in tensors.values())}
    if (size := sum(s.nbytes() for s in storages.values())) > file.stat().st_size:
        raise ValueError(f"it has {file.stat().st_size} bytes, its tensors {size}")
    return {n: StoredTensor(file, tuple(t.shape), str(t.dtype)) for n, t in tensors.items()}


def _unpickle(file: Path, device: str, *, mmap: bool) -> Any:
    """What torch wrote; on the meta device without the tensors' values, which are not read."""
    return torch.load(file, map_location=device, weights_only=True, mmap=mmap)


def _weight_files(path: Path) -> list[Path]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{single}.index.json"
        if index.is_file():
            refuse_pointer(index)
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                files = [path / name for name in sorted(names)]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{index} is not an index of weight files ({error}); copy or download it again"
                ) from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(
                    f"found no {', '.join(missing)} in {path}, which {index.name} names; "
                    "copy or download it again"
                )
            return files
        if (path / single).is_file():
            return [path / single]
    raise UserError(
        f"found no weights in {path}; expected model.safetensors, or several files with "
        "model.safetensors.index.json"
    )
