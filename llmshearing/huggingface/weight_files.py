"""The weight files of a Hugging Face directory, read one tensor (or a part of it) at a time.

What is read is mapped from its file and let go with the tensor, so memory holds what is being
copied and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmshearing.checksums import check_files, record_files
from llmshearing.errors import UserError

MANIFEST = "llmshearing.json"  # of a directory that this project wrote
FILES = "files"  # the manifest's entry: size and checksum of its weight files

# Weights in anything else are quantised, and mean nothing without their scales. Files may hold more
# than weights, such as the attention masks in Pythia's.
FLOATING = {"F64", "F32", "F16", "BF16"} | {
    str(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: the weight file.
        shape: its size.
        dtype: the name of its type in that file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


class WeightFiles:
    """The tensors of a directory by name: safetensors, or PyTorch's files where there are none.

    Args:
        path: a Hugging Face directory, weights in one file or in shards with an index.

    Raises:
        UserError: there are no weights, a file that the index names is missing, or a file is cut
            short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stored: dict[str, StoredTensor] = {}
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        for file in _weight_files(self.path):
            try:
                found = _header(file) if file.suffix == ".safetensors" else self._unpickle(file)
            except (
                SafetensorError, OSError, RuntimeError, EOFError, UnpicklingError, AttributeError,
            ) as error:  # fmt: skip
                raise UserError(
                    f"found {file}, which is cut short or no weight file "
                    f"({str(error).splitlines()[0]}); copy or download it again"
                ) from error
            self.stored |= found

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor in the dtype of its file, or some of its rows, fit to be copied and let go.

        Raises:
            UserError: it is quantised.
        """
        self.check_floating(name)
        file = self.stored[name].file
        if file in self._pickled:
            return self._pickled[file][name][rows]
        with safe_open(file, framework="pt") as opened:
            if not self.stored[name].shape:
                return opened.get_tensor(name)
            return opened.get_slice(name)[rows]

    def check_floating(self, name: str) -> None:
        """Refuse a weight that is quantised.

        Raises:
            UserError: names it.
        """
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
        path = self.path / MANIFEST
        if path.is_file():
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if "shape" in manifest and manifest.get("format", 0) > 0:
                remedy = f"Export it again, or remove {path} if it was changed on purpose"
                check_files(self.path, manifest[FILES], path, remedy)

    def _unpickle(self, file: Path) -> dict[str, StoredTensor]:
        tensors: dict[str, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
        self._pickled[file] = tensors
        return {n: StoredTensor(file, tuple(t.shape), str(t.dtype)) for n, t in tensors.items()}


def weight_records(path: Path) -> dict[str, Any]:
    """Size and checksum of a directory's weight files, for its manifest."""
    return record_files({file.name: file for file in _weight_files(path)})


def _header(file: Path) -> dict[str, StoredTensor]:
    with safe_open(file, framework="pt") as opened:
        slices: dict[str, Any] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def _weight_files(path: Path) -> list[Path]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{single}.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [path / name for name in sorted(set(names))]
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
        f"found no weights in {path}; expected model.safetensors, or shards with "
        "model.safetensors.index.json"
    )
