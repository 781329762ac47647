"""A number of parameters as the target instead of a shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, sized


@dataclass(frozen=True)
class Budget:
    """The largest number of parameters of a model whose shape the masks choose."""

    parameters: int  # the most parameters that the model may have
    axes: tuple[Axis, ...]  # the axes along which it may shrink
    # the divisor of the size of each axis; 1 by default
    steps: Mapping[Axis, int] = field(default_factory=dict)

    def step(self, axis: Axis) -> int:
        """The smallest change of the size of an axis."""
        return self.steps.get(axis, 1)


def smallest(table: CouplingTable, budget: Budget) -> Shape:
    """The smallest shape that the axes and divisors of the budget allow."""
    least = {axis: budget.step(axis) for axis in budget.axes}
    return sized(table.source, table.sizes(table.source) | least, grouped=table.grouped)


def shape_within(table: CouplingTable, budget: Budget, expected: Mapping[Axis, float]) -> Shape:
    """The shape within a budget that is nearest to the sizes that the masks expect.

    Sizes are rounded to their divisors. While the model is too large, the axis with the largest
    ratio of size to expected size gives up one step. Then each axis takes back what still fits.

    `expected` has units per axis of the budget (means over layers, for per-layer axes); at least
    the smallest shape must fit.
    """
    full = table.sizes(table.source)
    sizes = dict(full)
    for axis in budget.axes:
        step = budget.step(axis)
        nearest = step * max(1, round(expected[axis] / step))
        sizes[axis] = min(nearest, full[axis] // step * step)

    def count(sizes: Mapping[Axis, int]) -> int:
        return table.parameter_count(sized(table.source, sizes, grouped=table.grouped))

    def ratio(axis: Axis) -> float:
        return sizes[axis] / max(expected[axis], 1e-6)

    while count(sizes) > budget.parameters:
        able = [axis for axis in budget.axes if sizes[axis] > budget.step(axis)]
        largest = max(able, key=ratio)
        sizes[largest] -= budget.step(largest)
    for axis in sorted(budget.axes, key=ratio):
        step = budget.step(axis)
        # An axis exceeds its expected size by at most one step; the rest of the budget is unused.
        most = 1 + step / max(expected[axis], 1e-6)
        while sizes[axis] + step <= full[axis] and ratio(axis) < most:
            larger = {**sizes, axis: sizes[axis] + step}
            if count(larger) > budget.parameters:
                break
            sizes = larger
    return sized(table.source, sizes, grouped=table.grouped)
