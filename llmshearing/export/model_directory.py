"""Writing the parts of a Hugging Face directory: weights, the config that follows, other files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from llmshearing.architecture.coupling import CouplingTable, derive_shape
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.errors import UserError
from llmshearing.files import new_directory
from llmshearing.huggingface import tokenizer_files
from llmshearing.huggingface.weight_files import write_weights

DTYPES = ("float32", "bfloat16", "float16")


@contextmanager
def new_model_directory(out: str | Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `out` on success and vanishes on failure.

    Raises:
        UserError: `out` exists and is not empty, or cannot be made.
    """
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(new_directory(out))
        except FileExistsError as error:
            # Its place may be taken by a file, or so may that of a folder above it.
            taken = Path(error.filename) if error.filename else out
            raise UserError(
                f"{taken} exists and is not empty; give a new directory or remove this one"
            ) from error
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"cannot make {out} ({error.strerror}); expected a place that can be written"
            ) from error
        yield directory


def write_model(
    directory: Path,
    config: Mapping[str, Any],
    table: CouplingTable,
    expected: Shape,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    max_shard_size: int | str,
) -> Shape:
    """Weights, then the config that follows from them.

    Args:
        directory: where.
        config: of the source, complete.
        table: the source's coupling table.
        expected: the shape announced, from which the files' sizes are known beforehand.
        tensors: name and value of every tensor, one at a time.
        dtype: of the weights written.
        max_shard_size: of a weight file.

    Returns:
        The shape that the tensors have.
    """
    written: dict[str, tuple[int, ...]] = {}

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            written[name] = tuple(tensor.shape)
            yield name, tensor

    sizes = table.tensor_shapes(expected)
    write_weights(directory, sizes, noted(), getattr(torch, dtype), max_shard_size)
    shape = derive_shape(table, written)
    fields = {**config, **family_of(config).write_shape(shape), "dtype": dtype}
    AutoConfig.for_model(**fields).save_pretrained(directory)
    return shape


def copy_files(directory: Path, source: Path) -> None:
    """The tokenizer, and what generation settings the source has."""
    files = tokenizer_files.files(source)
    if (source / "generation_config.json").is_file():
        files.append(source / "generation_config.json")
    for file in files:
        shutil.copyfile(file, directory / file.name)
