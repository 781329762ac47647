"""The shapes that a search scores, and the units that each of them keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.space import evenly, largest_shapes
from llmshearing.export.oneshot import kept_units
from llmshearing.pruning.scores import Scores
from llmshearing.search.depth import Depth


@dataclass(frozen=True)
class Candidate:
    """A shape with the scores that decide which units it keeps."""

    shape: Shape
    scores: Scores = field(repr=False)

    @property
    def name(self) -> str:
        """The sizes as text."""
        s = self.shape
        return f"l{s.layers}-d{s.hidden}-h{s.heads}-g{s.kv_groups}-i{s.intermediate}"

    def kept(self, table: CouplingTable) -> dict[Axis, torch.Tensor]:
        """The units that stay."""
        return kept_units(self.scores, table, self.shape)


def choose_shapes(
    table: CouplingTable, within: Sequence[Shape], most: int
) -> tuple[list[Shape], int]:
    """The shapes to score, in the order of their sizes.

    A shape that another one within the budgets contains is left out. Of the rest, at most `most`
    are taken, evenly spaced in the order of layers, hidden, heads and intermediate.

    Returns:
        The shapes, and the number of shapes that no other one contains.
    """

    def order(shape: Shape) -> tuple[int, ...]:
        return shape.layers, shape.hidden, shape.heads, shape.kv_groups, shape.intermediate

    largest = sorted(largest_shapes(table, within), key=order)
    return evenly(largest, most), len(largest)


def candidate(scores: Scores, shape: Shape, depths: Mapping[int, Depth]) -> Candidate:
    """A shape whose layers are those that depth scoring found, its width by importance.

    Args:
        scores: the importance of all units.
        shape: the shape.
        depths: by number of layers, which layers stay.
    """
    layers = torch.zeros_like(scores[Axis.LAYER])
    layers[list(depths[shape.layers].kept)] = 1.0
    return Candidate(shape, {**scores, Axis.LAYER: layers})
