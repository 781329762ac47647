"""Scores of units that are not learned: for one-shot pruning and for the order masks start in.

Scores are [n] for HIDDEN and LAYER and [L, n] for the per-layer axes. Units of higher score stay.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.errors import UserError
from llmshearing.tensor_files import read_tensors, write_tensors

Scores = dict[Axis, Tensor]

SCORE_RANGE = 20.0  # ratio to the median beyond which a score moves the start of a mask no further


def score_shapes(table: CouplingTable) -> dict[Axis, tuple[int, ...]]:
    """The shape of the scores of each axis."""
    layers = table.source.layers
    return {
        axis: (layers, size) if axis.per_layer else (size,)
        for axis, size in table.sizes(table.source).items()
    }


def magnitude(table: CouplingTable, read: Callable[[str], Tensor]) -> Scores:
    """Sum of the squares of all weights that a unit owns; `read` returns a parameter by name."""
    scores = {axis: torch.zeros(shape) for axis, shape in score_shapes(table).items()}
    sizes = table.sizes(table.source)
    for row in table.rows:
        for layer, name in row.instances(table.source.layers):
            squares = (read(name).float() + row.offset).square()
            if layer is not None:
                scores[Axis.LAYER][layer] += squares.sum()
            for number, dim in enumerate(row.dims):
                if not dim.axes:
                    continue
                others = [n for n in range(squares.ndim) if n != number]
                owned = squares.sum(others) if others else squares
                parts = owned.split([part.size(sizes) for part in dim.parts])
                for part, values in zip(dim.parts, parts, strict=True):
                    units = values.reshape([*(sizes[axis] for axis in part.axes), part.multiple])
                    units = units.sum(-1)
                    for place, axis in enumerate(part.axes):
                        rest = [n for n in range(units.ndim) if n != place]
                        total = units.sum(rest) if rest else units
                        into = scores[axis][layer] if axis.per_layer else scores[axis]
                        into += total
    return scores


def random(table: CouplingTable, seed: int) -> Scores:
    """Random scores, the control of an experiment."""
    generator = torch.Generator().manual_seed(seed)
    return {
        axis: torch.rand(shape, generator=generator) for axis, shape in score_shapes(table).items()
    }


def evenly_spaced(table: CouplingTable, sizes: Mapping[Axis, int]) -> Scores:
    """Scores that keep `sizes` units per axis, at equal distances."""
    scores = {}
    for axis, shape in score_shapes(table).items():
        units, keep = shape[-1], sizes[axis]
        score = torch.zeros(shape)
        middles = (torch.arange(keep) + 0.5) * units / keep
        score[..., middles.long()] = 1.0
        scores[axis] = score
    return scores


def start_logits(score: Tensor, start: float, spread: float) -> Tensor:
    """Mask logits by the magnitude of a score, from start - spread to start + spread.

    A logit is linear in the logarithm of the score's ratio to the median of its row, up to a ratio
    of `SCORE_RANGE` either way. Scores of a trained model are heavy-tailed: ranks would put a unit
    of 200 times the median next to one of 2 times.

    Scores [..., n] are not negative; each row is compared with its own median, whose logit is
    `start`.
    """
    score = score.clamp(min=torch.finfo(score.dtype).tiny)
    ratio = (score / score.median(dim=-1, keepdim=True).values).log() / math.log(SCORE_RANGE)
    return start + spread * ratio.clamp(-1.0, 1.0)


def save_scores(path: str | Path, scores: Mapping[Axis, Tensor], about: Mapping[str, str]) -> None:
    """Write scores to a safetensors file, with `about` (how they were measured) as its metadata."""
    write_tensors(path, {axis.value: score.numpy() for axis, score in scores.items()}, about)


def load_scores(path: str | Path, table: CouplingTable) -> Scores:
    """Read the scores of a model.

    Raises:
        UserError: there is no such file, it is damaged, or its scores belong to a model of another
            shape.
    """
    try:
        scores = {Axis(name): torch.from_numpy(x) for name, x in read_tensors(path).items()}
    except (UserError, ValueError) as error:
        raise UserError(
            f"found no importance scores in {path} ({error}); expected a file made by "
            "llmshearing importance"
        ) from None
    expected = score_shapes(table)
    found = {axis: tuple(score.shape) for axis, score in scores.items()}
    if found != expected:
        wrong = next(axis for axis in Axis if found.get(axis) != expected.get(axis))
        raise UserError(
            f"{path}: found scores {found.get(wrong)} on axis {wrong.value}, expected "
            f"{expected.get(wrong)}: they belong to another model; measure this one's with "
            "llmshearing importance"
        )
    if wrong := [axis.value for axis, score in scores.items() if not score.isfinite().all()]:
        raise UserError(
            f"{path}: found scores on axis {', '.join(wrong)} that are not finite; measure them "
            "again with llmshearing importance"
        )
    return scores
