"""The shapes of a cut in several steps."""

from __future__ import annotations

import math
from dataclasses import replace

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, sized

LARGEST_STEP = 64  # sizes on the way are multiples of a power of two up to this, as both ends are


def first_cut(table: CouplingTable, target: Shape, cuts: int) -> tuple[Shape, list[str]]:
    """The first of several cuts from a source to its target.

    Each cut keeps about the same part of every axis, so that the sizes are a geometric series.

    Args:
        table: the source's coupling table.
        target: the shape of the last cut.
        cuts: how many are left, at least 1.

    Returns:
        The shape, and the error of a cut that keeps less than half of the parameters: a model that
        loses more at once recovers worse than in two cuts (Minitron, arXiv 2407.14679, section 5).
    """
    sizes = {}
    for axis, end in table.sizes(target).items():
        start = table.sizes(table.source)[axis]
        step = math.gcd(start, end, LARGEST_STEP)
        while step > 1 and 3 * step > start - end:  # so that there are sizes on the way
            step //= 2
        sizes[axis] = step * round(start * (end / start) ** (1 / cuts) / step)
    shape = sized(table.source, sizes, grouped=table.grouped)
    if table.implied_head_size:
        shape = replace(shape, hidden=shape.heads * shape.head_dim)
    before, after = table.parameter_count(table.source), table.parameter_count(shape)
    if 2 * after >= before:
        return shape, []
    least = cuts + math.ceil(math.log2(before / after)) - 1
    return shape, [
        f"--cuts: found {cuts}, which leaves {after:,} of {before:,} parameters after the first "
        f"cut, expected at least half; give {max(least, cuts + 1)}"
    ]
