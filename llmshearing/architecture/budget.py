"""A number of parameters as the target, instead of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape


@dataclass(frozen=True)
class Budget:
    """How large the model may be; its shape follows from the masks.

    Attributes:
        parameters: at most this many.
        axes: the axes along which it may shrink.
        steps: the divisor of each axis's size; 1 where none is given.
    """

    parameters: int
    axes: tuple[Axis, ...]
    steps: Mapping[Axis, int] = field(default_factory=dict)

    def step(self, axis: Axis) -> int:
        """The smallest change of an axis's size."""
        return self.steps.get(axis, 1)


def sized(source: Shape, sizes: Mapping[Axis, int], *, grouped: bool) -> Shape:
    """The source's shape with other sizes per axis."""
    groups = sizes[Axis.KV_GROUP] if grouped else None
    heads = sizes[Axis.HEAD] * (groups or 1)
    return replace(
        source,
        hidden=sizes[Axis.HIDDEN],
        layers=sizes[Axis.LAYER],
        heads=heads,
        kv_groups=groups or heads,
        intermediate=sizes[Axis.INTERMEDIATE],
    )


def smallest(table: CouplingTable, budget: Budget) -> Shape:
    """The smallest shape that the budget's axes and divisors allow."""
    least = {axis: budget.step(axis) for axis in budget.axes}
    return sized(table.source, table.sizes(table.source) | least, grouped=table.grouped)


def shape_within(table: CouplingTable, budget: Budget, expected: Mapping[Axis, float]) -> Shape:
    """The largest shape within a budget near the sizes that the masks expect.

    Sizes are rounded to their divisors; while the model is too large, the axis that stands furthest
    above its expected size (in parts of it) gives a step, then each axis takes what still fits.

    Args:
        table: the source's coupling table.
        budget: what it may have; at least the smallest shape has to fit.
        expected: expected units per axis of the budget (mean over layers, for per-layer axes).
    """
    full = table.sizes(table.source)
    sizes = dict(full)
    for axis in budget.axes:
        step = budget.step(axis)
        near = step * max(1, round(expected[axis] / step))
        sizes[axis] = min(near, full[axis] // step * step)

    def count(sizes: Mapping[Axis, int]) -> int:
        return table.parameter_count(sized(table.source, sizes, grouped=table.grouped))

    def excess(axis: Axis) -> float:
        return sizes[axis] / max(expected[axis], 1e-6)

    while count(sizes) > budget.parameters:
        able = [axis for axis in budget.axes if sizes[axis] > budget.step(axis)]
        widest = max(able, key=excess)
        sizes[widest] -= budget.step(widest)
    for axis in sorted(budget.axes, key=excess):
        while sizes[axis] + budget.step(axis) <= full[axis]:
            larger = {**sizes, axis: sizes[axis] + budget.step(axis)}
            # A step may overshoot what the masks ask for by one, no more: the rest stays unused.
            if count(larger) > budget.parameters or excess(axis) >= 1 + budget.step(axis) / max(
                expected[axis], 1e-6
            ):
                break
            sizes = larger
    return sized(table.source, sizes, grouped=table.grouped)
