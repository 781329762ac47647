"""Small safetensors files with a checksum of their content: importance scores and masks.

Files from before checksums have no format in their metadata and are read as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmshearing.errors import UserError
from llmshearing.files import refuse_pointer, write_bytes

FORMAT, CHECKSUM = "llmshearing_format", "checksum"  # in the metadata

Arrays = Mapping[str, NDArray[Any]]
EMPTY: Mapping[str, str] = {}


def write_tensors(path: str | Path, tensors: Arrays, about: Mapping[str, str] = EMPTY) -> None:
    """Write arrays with `about` as metadata, whole or not at all."""
    metadata = {**about, FORMAT: "1"}
    content = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata[CHECKSUM] = _digest(content, metadata)
    write_bytes(path, _with_sorted_metadata(save(content, metadata)))


def read_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read arrays; a UserError if there is no such file or its content has changed."""
    path = Path(path)
    try:
        refuse_pointer(path)
        with safe_open(str(path), "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error
    checksum = metadata.pop(CHECKSUM, None)
    if (checksum or FORMAT in metadata) and checksum != _digest(tensors, metadata):
        raise UserError(f"{path}: the content has changed since it was written")
    return tensors


def _with_sorted_metadata(file: bytes) -> bytes:
    """Safetensors writes metadata in an order that chance gives; equal content is equal bytes."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def _digest(tensors: Arrays, metadata: Mapping[str, str]) -> str:
    digest = xxhash.xxh3_128(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
