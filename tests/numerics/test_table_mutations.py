"""Any change to any row of any coupling table is noticed by the checks of `equivalence.py`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from equivalence import (
    Specimen,
    check_expected_count,
    check_gated_equals_exported,
    check_gates_act_on_activations,
    check_names_and_sizes,
    subsets,
)
from models_zoo import Variant, extras, variants

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, Dim, Row, Stack


def checks(specimen: Specimen, table: CouplingTable) -> None:
    """All checks of `equivalence.py` on a table, the cheap ones first."""
    *_, every = subsets(specimen.table)
    check_names_and_sizes(specimen, table)
    check_expected_count(specimen, table, every)
    check_gated_equals_exported(specimen, table, every, hard=False)
    check_gates_act_on_activations(specimen, table, every)


def other_dims(dim: Dim, sizes: dict[Axis, int]) -> Iterator[tuple[str, Dim]]:
    """The dimension with another axis, multiple or gate, of the same size if possible."""
    entries = dim.size(sizes)
    yield "multiple + 1", replace(dim, multiple=dim.multiple + 1)
    if dim.axes:
        yield "gate flipped", replace(dim, gated=not dim.gated)
        yield "fixed", replace(dim, axes=(), multiple=entries)
    if len(dim.axes) > 1:
        yield "axes turned round", replace(dim, axes=dim.axes[::-1])
    for place, axis in enumerate(dim.axes):
        rest = dim.axes[:place] + dim.axes[place + 1 :]
        if rest:
            multiple = dim.multiple * sizes[axis]
            yield f"without {axis.value}", replace(dim, axes=rest, multiple=multiple)
        for other in sizes.keys() - set(dim.axes):
            axes = (*dim.axes[:place], other, *dim.axes[place + 1 :])
            yield f"{axis.value} as {other.value}", replace(dim, axes=axes)
    for axis in sizes.keys() - set(dim.axes):
        if dim.multiple % sizes[axis] == 0:
            more = Dim((*dim.axes, axis), dim.multiple // sizes[axis], dim.gated)
            yield f"and {axis.value}", more


def other_stacks(stack: Stack, sizes: dict[Axis, int]) -> Iterator[tuple[str, Stack]]:
    """The stack with its parts in another order, or with another part."""
    if stack.parts[::-1] != stack.parts:
        yield "parts turned round", Stack(stack.parts[::-1])
    yield "a part gone", Stack(stack.parts[1:])
    for place, part in enumerate(stack.parts):
        for what, other in other_dims(part, sizes):
            if not other.gated:
                yield what, Stack((*stack.parts[:place], other, *stack.parts[place + 1 :]))


def other_rows(row: Row, sizes: dict[Axis, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Single replacements in a row."""
    yield "renamed", {"name": row.name.replace("weight", "gain").replace("bias", "shift")}
    yield "layer gate flipped", {"layer_gated": not row.layer_gated}
    yield "width power raised", {"width_power": row.width_power + 1}
    if row.is_norm and row.gated and (row.absorbs or row.offset):
        yield "offset", {"offset": row.offset + 0.5}
    if row.gated:
        yield "absorbs flipped", {"absorbs": not row.absorbs}
    if len(row.dims) > 1:
        yield "transposed", {"dims": row.dims[::-1]}
    for place, dim in enumerate(row.dims):
        stacked = isinstance(dim, Stack)
        others = other_stacks(dim, sizes) if stacked else other_dims(dim, sizes)
        for what, other in others:
            dims = (*row.dims[:place], other, *row.dims[place + 1 :])
            yield f"dimension {place}: {what}", {"dims": dims}


def mutants(table: CouplingTable) -> Iterator[tuple[str, tuple[dict[str, Any] | None, int]]]:
    """All changes of a table: what to replace in which row. None removes the row."""
    for place, row in enumerate(table.rows):
        yield f"{row.name} gone", (None, place)
        for what, change in other_rows(row, table.sizes(table.source)):
            yield f"{row.name} {what}", (change, place)


def mutated(table: CouplingTable, change: dict[str, Any] | None, place: int) -> CouplingTable:
    """The table with one row changed or removed; raises if the table refuses the change."""
    row = table.rows[place]
    changed = () if change is None else (replace(row, **change),)
    return replace(table, rows=(*table.rows[:place], *changed, *table.rows[place + 1 :]))


def mutated_variants() -> list[Variant]:
    """Variants whose tables differ in more than their family's name."""
    options = {"attention_bias", "mlp_bias"}
    return [*variants(), *(v for v in extras() if options & v.config.keys())]


@pytest.mark.parametrize("variant", mutated_variants(), ids=str)
def test_every_change_to_a_row_is_noticed(variant):
    specimen = Specimen(variant)
    checks(specimen, specimen.table)
    survivors, count = [], 0
    for what, (change, place) in mutants(specimen.table):
        count += 1
        try:
            checks(specimen, mutated(specimen.table, change, place))
        except Exception:
            continue
        survivors.append(what)
    checks(specimen, specimen.table)
    assert not survivors
    assert count > 10 * len(specimen.table.rows)
