"""The shapes of a cut in several steps."""

import math
from dataclasses import replace
from itertools import pairwise

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, sized

LARGEST_STEP = 64  # sizes on the way are multiples of a power of two up to this, as both ends are
MOST_CUTS = 16


def first_cut(table: CouplingTable, target: Shape, cuts: int) -> tuple[Shape, list[str]]:
    """The first of `cuts` cuts, 1 or more, from a source to `target`, the shape after the last.

    Returns:
        The shape, and the error if one of the cuts keeps less than half of the parameters: a model
        that loses more at once recovers worse than in two cuts (Minitron, arXiv 2407.14679).
    """
    shapes = series(table, target, cuts)
    if keeps_half(table, shapes):
        return shapes[1], []
    enough = (n for n in range(cuts + 1, MOST_CUTS) if keeps_half(table, series(table, target, n)))
    most, least = table.parameter_count(table.source), table.parameter_count(target)
    return shapes[1], [
        f"--cuts: found {cuts} from {most:,} to {least:,} parameters, one of which keeps less than "
        f"half; give {next(enough, MOST_CUTS)}"
    ]


def series(table: CouplingTable, target: Shape, cuts: int) -> list[Shape]:
    """The source and the shapes after each cut; the last is the target.

    Each cut keeps about the same part of every axis.
    """
    shapes = [table.source]
    for left in range(cuts, 1, -1):
        sizes = {}
        for axis, end in table.sizes(target).items():
            start = table.sizes(shapes[-1])[axis]
            step = math.gcd(start, end, LARGEST_STEP)
            while step > 1 and 3 * step > start - end:  # so that there are sizes on the way
                step //= 2
            sizes[axis] = step * round(start * (end / start) ** (1 / left) / step)
        shape = sized(table.source, sizes, grouped=table.grouped)
        if table.implied_head_size:
            shape = replace(shape, hidden=shape.heads * shape.head_dim)
        shapes.append(shape)
    return [*shapes, target]


def keeps_half(table: CouplingTable, shapes: list[Shape]) -> bool:
    """Whether each cut keeps at least half of the parameters."""
    counts = [table.parameter_count(shape) for shape in shapes]
    return all(2 * after >= before for before, after in pairwise(counts))
