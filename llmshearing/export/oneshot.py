"""Pruning without training: the units of highest score stay, as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import TargetSettings, resolve_shape
from llmshearing.checkpoints.manifest import ExportManifest, SourceRecord
from llmshearing.errors import UserError
from llmshearing.export.model_directory import (
    DTYPES,
    copy_files,
    new_model_directory,
    write_model,
)
from llmshearing.export.verification import gated_logits, verify
from llmshearing.huggingface.source import (
    Source,
    empty_model,
    parameter_aliases,
    read_source,
)
from llmshearing.huggingface.weight_files import (
    WeightFiles,
    parse_size,
    weight_records,
)
from llmshearing.pruning.scores import Scores, evenly_spaced, load_scores, magnitude, random
from llmshearing.pruning.selection import indicator, select
from llmshearing.pruning.surgery import cut_model
from llmshearing.typed_yaml import error_list

METHODS = ("magnitude", "random", "spaced")  # those that need no text
# From (coupling table, units to keep per axis, reader of parameters) to scores.
Scorer = Callable[[CouplingTable, Mapping[Axis, int], Callable[[str], Tensor]], Scores]


@dataclass(frozen=True)
class OneShot:
    """What one-shot pruning produced.

    Attributes:
        directory: the Hugging Face directory.
        shape: its shape.
        parameters: its parameters.
        difference: largest difference of its logits from the source's under 0/1 gates, float32.
    """

    directory: Path
    shape: Shape
    parameters: int
    difference: float


def prune_oneshot(
    model: str | Path,
    out: str | Path,
    target: TargetSettings,
    score: Scorer,
    *,
    method: str,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> OneShot:
    """Cut a Hugging Face directory to a target shape and write it as another.

    Args:
        model: the source directory.
        out: the directory to make; it must not exist or be empty.
        target: the shape.
        score: gives the scores, see `scorer` and `from_file`.
        method: the scores' name, for the manifest.
        dtype: of the weights written.
        max_shard_size: of a weight file.

    Raises:
        UserError: a target that the source cannot reach, an option that is not known, or an output
            that is not empty.
    """
    if dtype not in DTYPES:
        raise UserError(f"found dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    parse_size(max_shard_size)
    source = read_source(model)
    table = source.table
    if target.parameters is not None:
        raise UserError(
            "--target: found parameters, expected sizes such as hidden=128: only masks that learn "
            "choose a shape within a budget (target.parameters of a pruning recipe)"
        )
    shape, errors = resolve_shape(table, target)
    if errors:
        raise UserError(error_list("--target", errors))
    original = _Original(source)
    sizes = table.sizes(shape)
    axes = [axis for axis, size in sizes.items() if size < table.sizes(table.source)[axis]]
    scores = score(table, sizes, original.read)
    kept = select({axis: scores[axis] for axis in axes}, sizes)
    gates = {axis: indicator(scores[axis].float(), kept[axis]) for axis in axes}

    def tensors() -> Any:
        return cut_model(table, kept, {}, original.read)

    with new_model_directory(out) as directory:
        written = write_model(
            directory,
            source.config,
            table,
            shape,
            tensors(),
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        copy_files(directory, source.path)
        difference = verify(directory, gated_logits(original, gates), tensors())
        ExportManifest(
            source=SourceRecord(str(source.path.resolve()), table.source, source.config),
            shape=written,
            dtype=dtype,
            kept={axis.value: units.tolist() for axis, units in kept.items()},
            files=weight_records(directory),
            logits_difference=difference,
            method=method,
        ).write(directory)
    return OneShot(Path(out), written, table.parameter_count(written), difference)


def scorer(method: str, seed: int = 0) -> Scorer:
    """How the methods that need no text score.

    Raises:
        UserError: there is no such method.
    """
    if method == "magnitude":
        return lambda table, _, read: magnitude(table, read)
    if method == "random":
        return lambda table, *_: random(table, seed)
    if method == "spaced":
        return lambda table, sizes, _: evenly_spaced(table, sizes)
    raise UserError(f"found method {method!r}, expected one of {', '.join(METHODS)}")


def from_file(path: Path) -> Scorer:
    """Scores that `llmshearing importance` has written."""
    return lambda table, *_: load_scores(path, table)


class _Original:
    """A source directory's tensors, with the names that the stock model gives to tied ones too.

    Raises:
        UserError: weights are missing, unexpected or of another size.
    """

    def __init__(self, source: Source) -> None:
        self.config, self._weights = source.config, WeightFiles(source.path)
        stored = self._weights.stored
        self._stored: dict[str, str] = {}  # by each of its names, the one it has in the files
        for names in parameter_aliases(empty_model(source, self._weights)).values():
            kept = next(name for name in names if name in stored)
            self._stored |= dict.fromkeys(names, kept)

    def names(self) -> list[str]:
        return sorted(self._weights.stored)

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._stored.get(name, name)).to(torch.float32)
