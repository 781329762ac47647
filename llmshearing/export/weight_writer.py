"""Writing safetensors files one tensor at a time.

The safetensors library writes a file from a dictionary of all its tensors. Its format (8 bytes with
the length of a JSON header, the header, the tensors' bytes without gaps;
https://github.com/huggingface/safetensors#format) lets a tensor be written as soon as it is known,
since sizes are known beforehand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from llmshearing.errors import UserError
from llmshearing.export.mapped import place_of
from llmshearing.files import write_json

INDEX = "model.safetensors.index.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Bytes written between two flushes to the disk, which go on beside the next tensors.
FLUSH_BYTES = 256 << 20
# Bytes of a write. The system takes memory for its cache in blocks up to the size of a write, and
# large ones are dear: 0.62 GB took 0.25 s of processor time in these pieces and 1.1 s in whole
# tensors.
WRITE_BYTES = 256 << 10
# A tensor of this size that is a part of a file as it is, is copied by the system.
IN_KERNEL_BYTES = 1 << 20
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Flusher:
    """Brings files to the disk beside other work; leaving it waits until all are there.

    Raises:
        OSError: at the end, of the first file that could not be written.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._files: list[BinaryIO] = []
        self._flushes: list[Future[None]] = []

    def __enter__(self) -> Flusher:
        return self

    def open(self, path: Path) -> BinaryIO:
        """A new file, closed at the end."""
        file = path.open("wb", buffering=0)
        self._files.append(file)
        return file

    def flush(self, file: BinaryIO) -> None:
        """Begin to flush what has been written so far."""
        self._flushes.append(self._thread.submit(os.fsync, file.fileno()))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._thread.shutdown(wait=True, cancel_futures=error is not None)
        for file in self._files:
            file.close()
        if error is None:
            for flush in self._flushes:
                flush.result()


def write_weights(
    directory: Path,
    sizes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_size: int | str,
    flusher: Flusher,
) -> None:
    """Write `model.safetensors`, or shards with their index.

    Args:
        directory: where.
        sizes: every tensor's size by name.
        tensors: name and value, in any order, each of them once.
        dtype: of what is written.
        max_shard_size: bytes of a file, or a text such as `5GB`; a larger tensor has its own file.
        flusher: brings the files to the disk.

    Raises:
        UserError: the size of a file is none.
        ValueError: the tensors are not those announced.
    """
    empty = {n: torch.empty(size, dtype=dtype, device="meta") for n, size in sizes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=parse_size(max_shard_size))
    shards = {
        file: _Shard(directory / file, {name: empty[name] for name in names}, flusher)
        for file, names in split.filename_to_tensors.items()
    }
    for name, tensor in tensors:
        if name not in split.tensor_to_filename:
            raise ValueError(f"found tensor {name}, which was not announced")
        shards[split.tensor_to_filename[name]].write(name, tensor)
    for shard in shards.values():
        shard.finish()
    if split.is_sharded:
        metadata = {"total_size": split.metadata["total_size"]}
        write_json(
            directory / INDEX, {"metadata": metadata, "weight_map": split.tensor_to_filename}
        )


def parse_size(text: int | str) -> int:
    """Bytes of a size such as `5GB`.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(text).strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[(match[2] or "B").upper()]) if match else 0
    if size <= 0:
        raise UserError(f"found the shard size {text!r}, expected a size such as 5GB or 500MB")
    return size


class _Shard:
    """One file: its header is written at once, its tensors as they come."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], flusher: Flusher) -> None:
        self._file = flusher.open(path)
        self._flusher, self._unflushed = flusher, 0
        self._tensors = dict(tensors)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.numel() * tensor.element_size()
            self._offsets[name] = begin
            header[name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._start = 8 + len(text)
        self._file.truncate(self._start + end)

    def write(self, name: str, tensor: Tensor) -> None:
        expected = self._tensors.pop(name, None)
        if expected is None or expected.shape != tensor.shape:
            raise ValueError(f"found {name} of {list(tensor.shape)}, expected {expected}")
        content = tensor.to(expected.dtype).contiguous().flatten().view(torch.uint8)
        self._file.seek(self._start + self._offsets[name])
        place = place_of(content) if content.numel() >= IN_KERNEL_BYTES else None
        if place is None:
            left = content.numpy().data
            while left:
                left = left[self._file.write(left[:WRITE_BYTES]) :]
        else:
            self._copy(*place, content.numel())
        self._unflushed += content.numel()
        if self._unflushed >= FLUSH_BYTES:
            self._flush()

    def _copy(self, source: Path, offset: int, size: int) -> None:
        """Copy bytes of another file without a way through this process's memory."""
        end = offset + size
        with source.open("rb") as file:
            while offset < end:
                copied = os.sendfile(self._file.fileno(), file.fileno(), offset, end - offset)
                if not copied:
                    raise OSError(f"{source} ended at {offset} bytes, expected {end}")
                offset += copied

    def finish(self) -> None:
        """See that nothing is missing.

        Raises:
            ValueError: a tensor is.
        """
        if self._tensors:
            raise ValueError(f"found no tensor {', '.join(self._tensors)}, which was announced")
        self._flush()

    def _flush(self) -> None:
        self._flusher.flush(self._file)
        self._unflushed = 0
