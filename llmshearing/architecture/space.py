"""The shapes that a search may choose from, and the budgets that they have to keep."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, sized
from llmshearing.architecture.target import (
    AXIS_OF,
    SIZES,
    ServingSettings,
    Size,
    TargetSettings,
    axes_error,
)
from llmshearing.quantities import byte_size, count, token_milliseconds

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGEST_DIVISOR = 64  # widths that are multiples of 64 run fast on GPUs
SMALLEST_FRACTION = 4  # by default an axis keeps at least a quarter of its units


@dataclass(frozen=True)
class Space:
    """The shapes of a grid, and the budgets."""

    # the sizes of each axis that the grid combines, ascending
    values: Mapping[Axis, tuple[int, ...]]
    grid: tuple[Shape, ...]  # the shapes, without the source's own
    parameters: int | None  # the most parameters; None for any number
    memory: int | None  # the most bytes of weights and KV cache; None for any number
    milliseconds: float | None  # the most time from one token to the next; None for any
    serving: ServingSettings  # what memory and time refer to

    def within(
        self, table: CouplingTable, milliseconds: Callable[[Shape], float] | None = None
    ) -> list[Shape]:
        """The shapes within all budgets.

        The budget of latency counts only if `milliseconds` is given, which gives the time from one
        token to the next of a shape.
        """
        return [
            shape
            for shape in self.grid
            if _at_most(table.parameter_count(shape), self.parameters)
            and _at_most(memory_bytes(table, shape, self.serving), self.memory)
            and (milliseconds is None or _at_most(milliseconds(shape), self.milliseconds))
        ]


def memory_bytes(table: CouplingTable, shape: Shape, serving: ServingSettings) -> int:
    """Bytes of the weights and of a KV cache that is full; tied weights count once.

    A sliding window or a quantised cache would need less than this.
    """
    cache = 2 * shape.layers * shape.kv_groups * shape.head_dim * serving.batch * serving.context
    return (table.parameter_count(shape) + cache) * ELEMENT_BYTES[serving.dtype]


def largest_shapes(table: CouplingTable, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that no other of them exceeds: none is as large on all axes and larger on one.

    A shape that another one contains would leave a part of the budget unused.
    """
    sizes = np.array([list(table.sizes(shape).values()) for shape in shapes])
    exceeded = [bool(((sizes >= own).all(-1) & (sizes > own).any(-1)).any()) for own in sizes]
    return [shape for shape, smaller in zip(shapes, exceeded, strict=True) if not smaller]


def evenly(values: Sequence, most: int) -> list:
    """At most so many of the values, evenly spaced, both ends included."""
    if len(values) <= most:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, most)]


def resolve_space(
    table: CouplingTable, settings: TargetSettings, values_per_axis: int
) -> tuple[Space, list[str]]:
    """The shapes that a target allows.

    An axis takes the multiples of its divisor from the minimum to the maximum, at most
    `values_per_axis` of them, evenly spaced. The divisor is that of `multiple_of`; by default the
    largest power of two up to 64 that divides the source's hidden or intermediate size, and 1 for
    other axes. The minimum is a quarter of the source's size by default. A size that is given is
    the only one of its axis.

    Returns:
        The space, and the list of errors.
    """
    serving = settings.serving or ServingSettings()
    limit = None
    if settings.latency is not None:
        limit = token_milliseconds(settings.latency, serving.batch)
    errors = _setting_errors(table, settings)
    values = {} if errors else _axis_values(table, settings, values_per_axis)
    space = Space(
        values,
        tuple(_grid(table, settings, values)),
        None if settings.parameters is None else count(settings.parameters),
        None if settings.memory is None else byte_size(settings.memory),
        limit,
        serving,
    )
    return space, errors or _space_errors(table, space)


def _at_most(value: float, limit: float | None) -> bool:
    return limit is None or value <= limit


def _setting_errors(table: CouplingTable, settings: TargetSettings) -> list[str]:
    source, errors = table.source, []
    if not (settings.parameters or settings.memory or settings.latency):
        errors.append(
            "target: found no budget, expected parameters, memory or latency, e.g. parameters=1.3B"
        )
    errors += filter(None, [axes_error(table, settings)])
    groups = {"minimum": settings.minimum, "maximum": settings.maximum}
    groups |= {"multiple_of": settings.multiple_of}
    for key, limits in [("", settings.given_sizes), *groups.items()]:
        for name, size in (limits or {}).items():
            if size > getattr(source, name):
                where = f"{key}.{name}" if key else name
                errors.append(
                    f"target.{where}: found {size}, expected at most the source's "
                    f"{getattr(source, name)}"
                )
    for name, least in (settings.minimum or {}).items():
        if least > (settings.maximum or {}).get(name, least):
            errors.append(
                f"target.minimum.{name}: found {least}, expected at most target.maximum.{name}"
            )
    return errors


def _axis_values(
    table: CouplingTable, settings: TargetSettings, most: int
) -> dict[Axis, tuple[int, ...]]:
    """The sizes of each axis. Heads within groups are limited by the shape's heads, in `_grid`."""
    full, values = table.sizes(table.source), {}
    names: dict[Axis, Size] = {axis: name for name, axis in AXIS_OF.items()}
    given = settings.given_sizes
    for axis, size in full.items():
        name = names[axis]
        within_groups = axis is Axis.HEAD and table.grouped
        divisor = 1 if within_groups else settings.multiple_of.get(name, _divisor(table, axis))
        if name in given and not within_groups:
            values[axis] = (given[name],)
        elif settings.axes and axis.value not in settings.axes:
            values[axis] = (size,)
        else:
            least, largest = -(-size // SMALLEST_FRACTION), size
            if not within_groups:
                least = (settings.minimum or {}).get(name, least)
                largest = (settings.maximum or {}).get(name, largest)
            first = max(1, -(-least // divisor)) * divisor
            values[axis] = tuple(evenly(range(first, largest + 1, divisor), most))
    return values


def _divisor(table: CouplingTable, axis: Axis) -> int:
    size = table.sizes(table.source)[axis]
    if axis is Axis.HIDDEN and table.implied_head_size:
        return table.source.head_dim
    if axis in (Axis.HIDDEN, Axis.INTERMEDIATE):
        return min(LARGEST_DIVISOR, size & -size)
    return 1


def _grid(
    table: CouplingTable, settings: TargetSettings, values: Mapping[Axis, Sequence[int]]
) -> list[Shape]:
    """The combinations that the family's config can hold and the settings allow."""
    given, least, largest = settings.given_sizes, settings.minimum or {}, settings.maximum or {}

    def allowed(shape: Shape) -> bool:
        sizes: dict[Size, int] = {name: getattr(shape, name) for name in SIZES}
        return (
            shape != table.source
            and all(sizes[name] == size for name, size in given.items())
            and all(sizes[name] >= size for name, size in least.items())
            and all(sizes[name] <= size for name, size in largest.items())
            and all(sizes[name] % step == 0 for name, step in settings.multiple_of.items())
            and table.shape_error(shape) is None
        )

    combined = itertools.product(*values.values()) if values else ()
    shapes = (
        sized(table.source, dict(zip(values, sizes, strict=True)), grouped=table.grouped)
        for sizes in combined
    )
    return [shape for shape in shapes if allowed(shape)]


def _space_errors(table: CouplingTable, space: Space) -> list[str]:
    if not space.grid:
        return [
            "target: no shape smaller than the source keeps these sizes, minimums, maximums and "
            "divisors; relax one of them"
        ]
    budgets: list[tuple[str, int | None, Callable[[Shape], int]]] = [
        ("parameters", space.parameters, table.parameter_count),
        ("memory", space.memory, lambda shape: memory_bytes(table, shape, space.serving)),
    ]
    errors = []
    for name, limit, measure in budgets:
        most, least = measure(table.source), min(map(measure, space.grid))
        if limit is not None and limit >= most:
            errors.append(
                f"target.{name}: found {limit:,}, but the source has {most:,}; give fewer"
            )
        elif limit is not None and limit < least:
            errors.append(
                f"target.{name}: found {limit:,}, but the smallest shape that the sizes allow has "
                f"{least:,}; give more, or lower target.minimum"
            )
    return errors
