"""Coupling tables: which parameter shrinks along which axis, and which gates it absorbs.

A family's table is the one place for these facts. From it come the places where gates act, the
(expected) parameter count, the slicing at export, and the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.shape import Shape, axis_sizes

LAYER_FIELD = "{layer}"


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter: the units of `axes` in row-major order, `multiple` rows each.

    Attributes:
        axes: the axes whose kept units this dimension keeps; empty for a fixed dimension.
        multiple: entries per unit, e.g. `head_dim`; the whole size of a fixed dimension.
        gated: whether the gates of `axes` multiply along this dimension.
    """

    axes: tuple[Axis, ...] = ()
    multiple: int = 1
    gated: bool = False

    @property
    def with_gate(self) -> Dim:
        """The same dimension, multiplied by its axes' gates."""
        return replace(self, gated=True)

    def size(self, sizes: Mapping[Axis, Any]) -> Any:
        """Entries along this dimension, for numbers or arrays of (expected) axis sizes."""
        return math.prod((sizes[axis] for axis in self.axes), start=self.multiple)


@dataclass(frozen=True)
class Row:
    """One parameter (or one per layer) of the stock Transformers model.

    Attributes:
        name: the parameter's name; `{layer}` stands for the layer's number.
        dims: its dimensions, in order.
        layer_gated: whether it writes to the residual stream, so that the layer's gate scales it.
        absorbs: whether export folds its gates into it. False where another row that shares the
            tensor (a tied output head) already carries them.
    """

    name: str
    dims: tuple[Dim, ...]
    layer_gated: bool = False
    absorbs: bool = True

    def __post_init__(self) -> None:
        """Only a layer's own parameter can take the layer's gate."""
        if self.layer_gated and not self.per_layer:
            raise ValueError(f"{self.name} takes the gate of a layer, but belongs to none")

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return LAYER_FIELD in self.name

    @property
    def gated(self) -> bool:
        """Whether any gate acts at this parameter."""
        return self.layer_gated or any(dim.gated for dim in self.dims)

    @property
    def module(self) -> str:
        """The name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    def instances(self, layers: int) -> Iterator[tuple[int | None, str]]:
        """The concrete parameters as (layer or None, name)."""
        if not self.per_layer:
            yield None, self.name
            return
        for layer in range(layers):
            yield layer, self.name.format(layer=layer)


@dataclass(frozen=True)
class CouplingTable:
    """A family's rows for one model, with the axes that the model has.

    Attributes:
        rows: one entry per parameter template; a bias takes the gates of its weight's outputs.
        source: the shape of the model that the rows describe.
        grouped: whether it uses grouped-query attention.
        implied_head_size: whether its config derives the head size as hidden / heads, so that a
            model of another ratio cannot be written.
    """

    rows: tuple[Row, ...]
    source: Shape
    grouped: bool
    implied_head_size: bool = False

    def __post_init__(self) -> None:
        """A bias lies along its weight's first dimension and takes the same gates."""
        weights = {row.module: row for row in self.rows if row.name.endswith(".weight")}
        for row in self.rows:
            weight = weights.get(row.module, row)
            if row.name.endswith(".bias") and (
                row.dims != weight.dims[:1]
                or (row.layer_gated, row.absorbs) != (weight.layer_gated, weight.absorbs)
            ):
                raise ValueError(f"{row.name} and {weight.name} disagree; expected the same gates")

    def sizes(self, shape: Shape) -> dict[Axis, int]:
        """Units per axis of `shape`, seen with this model's axes."""
        return axis_sizes(shape, grouped=self.grouped)

    def tensor_shapes(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and size in a model of `shape`."""
        sizes = self.sizes(shape)
        return {
            name: tuple(dim.size(sizes) for dim in row.dims)
            for row in self.rows
            for _, name in row.instances(shape.layers)
        }

    def parameter_count(self, shape: Shape) -> int:
        """Parameters of a model of `shape`, an exact integer; tied tensors count once."""
        return sum(math.prod(size) for size in self.tensor_shapes(shape).values())


def expected_parameter_count(
    rows: Sequence[Row], sizes: Mapping[Axis, Any], layer_gates: Any
) -> Any:
    """Expected parameters under independent gates; exact where every gate is 0 or 1.

    Differentiable: only sums and products are taken, so arrays of NumPy or torch serve alike.

    Args:
        rows: the coupling table's rows.
        sizes: expected kept units per axis: a scalar for `HIDDEN`, shape [L] for per-layer axes.
        layer_gates: probability that each layer is kept, shape [L].

    Returns:
        A scalar: the sum over parameters of the product of their expected sizes.
    """
    total: Any = 0
    for row in rows:
        count = math.prod((dim.size(sizes) for dim in row.dims), start=1)
        total = total + ((count * layer_gates).sum() if row.per_layer else count)
    return total


def derive_shape(table: CouplingTable, tensors: Mapping[str, tuple[int, ...]]) -> Shape:
    """The shape of a model from its tensors' sizes alone.

    Args:
        table: the coupling table of the model it was cut from.
        tensors: every parameter's name and size.

    Raises:
        ValueError: the tensors do not form one shape, e.g. layers with different head counts.
    """
    repeated = next(row for row in table.rows if row.per_layer)
    layers = sum(name in tensors for _, name in repeated.instances(table.source.layers))
    sizes: dict[Axis, int] = {Axis.LAYER: layers}
    dims = [
        (dim, entries)
        for row in table.rows
        for dim, entries in zip(row.dims, tensors[row.name.format(layer=0)], strict=True)
    ]
    for dim, entries in sorted(dims, key=lambda pair: len(pair[0].axes)):
        unknown = [axis for axis in dim.axes if axis not in sizes]
        if len(unknown) == 1:
            known = math.prod((sizes[a] for a in dim.axes if a in sizes), start=dim.multiple)
            sizes[unknown[0]] = entries // known
    groups = sizes.get(Axis.KV_GROUP)
    heads = sizes[Axis.HEAD] * (groups or 1)
    shape = replace(
        table.source,
        hidden=sizes[Axis.HIDDEN],
        layers=layers,
        heads=heads,
        kv_groups=groups or heads,
        intermediate=sizes[Axis.INTERMEDIATE],
    )
    wrong = {
        name: (tensors.get(name), size)
        for name, size in table.tensor_shapes(shape).items()
        if tensors.get(name) != size
    }
    if wrong or len(tensors) != len(table.tensor_shapes(shape)):
        raise ValueError(f"tensors do not form one shape; (found, expected) by name: {wrong}")
    return shape
