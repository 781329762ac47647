"""Coupling tables: the axes along which each parameter shrinks, and the gates it absorbs.

The table of a family is the one place for these facts. From it follow where gates act, the exact
and the expected parameter count, what export cuts, and the tests.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.shape import (
    Shape,
    axis_sizes,
    head_count_error,
    implied_head_size_error,
    sized,
)

LAYER_FIELD = "{layer}"


@dataclass(frozen=True)
class Dim:
    """A dimension of a parameter: units of `axes` in row-major order, `multiple` entries each."""

    axes: tuple[Axis, ...] = ()  # the axes along which the dimension shrinks; empty if it is fixed
    multiple: int = 1  # entries per unit, e.g. `head_dim`; the whole size if the dimension is fixed
    gated: bool = False  # whether the gates of `axes` multiply along this dimension

    @property
    def with_gate(self) -> "Dim":
        """The same dimension, multiplied by the gates of its axes."""
        return replace(self, gated=True)

    @property
    def parts(self) -> "tuple[Dim, ...]":
        """The dimensions that it is made of: only itself."""
        return (self,)

    def size(self, sizes: Mapping[Axis, Any]) -> Any:
        """Entries along this dimension; sizes may be numbers or arrays, exact or expected."""
        return math.prod((sizes[axis] for axis in self.axes), start=self.multiple)


@dataclass(frozen=True)
class Stack:
    """Several dimensions one after the other, such as those of queries, keys and values.

    No gates act along it. Parts that are no dimension of another row are alike.
    """

    parts: tuple[Dim, ...]
    gated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that no part is gated."""
        if any(part.gated for part in self.parts):
            raise ValueError(f"found a gate along {self.parts}")

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of all parts."""
        return tuple(dict.fromkeys(axis for part in self.parts for axis in part.axes))

    def size(self, sizes: Mapping[Axis, Any]) -> Any:
        """Entries along all parts."""
        return sum(part.size(sizes) for part in self.parts)


@dataclass(frozen=True)
class Row:
    """A parameter of the stock Transformers model, or one parameter in each layer."""

    name: str  # name of the parameter, with `{layer}` for the number of the layer
    dims: tuple[Dim | Stack, ...]  # its dimensions, in order
    # whether it writes to the residual stream, so that the layer's gate scales it
    layer_gated: bool = False
    # whether export folds its gates into it. False if they are already in a tensor that is shared
    # (the final norm's gates, with a tied output head)
    absorbs: bool = True
    # for a norm, whether the product with its weight is computed in float32 and rounded, and not
    # what it is multiplied with
    rounds_last: bool = False
    offset: float = 0.0  # what the module adds to the parameter before it multiplies with it
    # how often the module multiplies the parameter by the square root of the hidden size. A smaller
    # hidden size changes that factor, so export corrects the parameter
    width_power: int = 0

    def __post_init__(self) -> None:
        """Check that only parameters of a layer take the gate of the layer."""
        if self.layer_gated and not self.per_layer:
            raise ValueError(f"{self.name} takes the gate of a layer, but is in no layer")

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return LAYER_FIELD in self.name

    @property
    def gated(self) -> bool:
        """Whether any gate acts at this parameter."""
        return self.layer_gated or any(dim.gated for dim in self.dims)

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm; no other weight is a vector."""
        return len(self.dims) == 1 and self.name.endswith(".weight")

    @property
    def norms_stream(self) -> bool:
        """Whether it is the weight of a norm whose input is the residual stream.

        A norm that ends a branch normalises the branch, and takes the gate of the layer.
        """
        return self.is_norm and self.dims[0].axes == (Axis.HIDDEN,) and not self.layer_gated

    @property
    def module(self) -> str:
        """The name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    def instances(self, layers: int) -> Iterator[tuple[int | None, str]]:
        """The parameters as (layer or None, name)."""
        if not self.per_layer:
            yield None, self.name
            return
        for layer in range(layers):
            yield layer, self.name.format(layer=layer)


@dataclass(frozen=True)
class CouplingTable:
    """The rows of one model, with its shape and axes."""

    # the rows of all parameters; a bias takes the gates of its weight's outputs
    rows: tuple[Row, ...]
    source: Shape  # the shape of the model
    grouped: bool  # whether it uses grouped-query attention
    # whether its config derives the head size as hidden / heads, so that no other ratio of the two
    # can be written
    implied_head_size: bool = False
    heads_divide_hidden: bool = False  # whether Transformers refuses its config otherwise

    def __post_init__(self) -> None:
        """Check that each bias has the first dimension and the gates of its weight."""
        weights = {row.module: row for row in self.rows if row.name.endswith(".weight")}
        for row in self.rows:
            weight = weights.get(row.module, row)
            if row.name.endswith(".bias") and (
                row.dims != weight.dims[:1]
                or (row.layer_gated, row.absorbs) != (weight.layer_gated, weight.absorbs)
            ):
                raise ValueError(f"{row.name} and {weight.name} have different gates")

    def sizes(self, shape: Shape) -> dict[Axis, int]:
        """Units of `shape` per axis of this model."""
        return axis_sizes(shape, grouped=self.grouped)

    def shape_error(self, shape: Shape) -> str | None:
        """Why no config of the family states `shape`, or None."""
        if self.implied_head_size:
            return implied_head_size_error(shape)
        return head_count_error(shape) if self.heads_divide_hidden else None

    def tensor_shapes(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Name and size of every parameter of a model of `shape`."""
        sizes = self.sizes(shape)
        return {
            name: tuple(dim.size(sizes) for dim in row.dims)
            for row in self.rows
            for _, name in row.instances(shape.layers)
        }

    def parameter_count(self, shape: Shape) -> int:
        """The exact number of parameters of a model of `shape`; tied tensors count once."""
        sizes = self.sizes(shape)
        return sum(
            math.prod(dim.size(sizes) for dim in row.dims) * (shape.layers if row.per_layer else 1)
            for row in self.rows
        )


def expected_parameter_count(
    rows: Sequence[Row], sizes: Mapping[Axis, Any], layer_gates: Any
) -> Any:
    """Expected parameters under independent gates; exact if every gate is 0 or 1.

    It is a sum of products, so it works for NumPy and for torch, where it is differentiable.

    `sizes` are expected kept units per axis, a scalar for `HIDDEN` and [L] for per-layer axes;
    `layer_gates` [L] are the probabilities that layers are kept.

    Returns:
        A scalar: the sum over parameters of the product of their expected sizes.
    """
    total: Any = 0
    for row in rows:
        count = math.prod((dim.size(sizes) for dim in row.dims), start=1)
        total = total + ((count * layer_gates).sum() if row.per_layer else count)
    return total


def derive_shape(table: CouplingTable, tensors: Mapping[str, tuple[int, ...]]) -> Shape:
    """The shape of a model that was cut from the table's, from the sizes of its tensors alone.

    Raises:
        ValueError: the tensors do not form one shape, e.g. layers have different numbers of heads.
    """
    repeated = next(row for row in table.rows if row.per_layer)
    layers = sum(name in tensors for _, name in repeated.instances(table.source.layers))
    sizes: dict[Axis, int] = {Axis.LAYER: layers}
    dims = [
        (dim, entries)
        for row in table.rows
        for dim, entries in zip(row.dims, tensors[row.name.format(layer=0)], strict=True)
    ]
    for dim, entries in sorted(_separate(dims), key=lambda pair: len(pair[0].axes)):
        unknown = [axis for axis in dim.axes if axis not in sizes]
        if len(unknown) == 1:
            known = math.prod((sizes[a] for a in dim.axes if a in sizes), start=dim.multiple)
            sizes[unknown[0]] = entries // known
    shape = sized(table.source, sizes, grouped=table.grouped)
    expected = table.tensor_shapes(shape)
    if dict(tensors) != expected:
        wrong = {
            name: (tensors.get(name), expected.get(name))
            for name in sorted(tensors.keys() | expected.keys())
            if tensors.get(name) != expected.get(name)
        }
        raise ValueError(f"tensors do not form one shape; (found, expected) by name: {wrong}")
    return shape


def _separate(dims: Sequence[tuple[Dim | Stack, int]]) -> list[tuple[Dim, int]]:
    """The dimensions with the unknown parts of stacks on their own, each with its entries."""
    plain = [(dim, entries) for dim, entries in dims if isinstance(dim, Dim)]
    known = {replace(dim, gated=False): entries for dim, entries in plain}
    for stack, entries in dims:
        rest = [part for part in stack.parts if part not in known]
        if isinstance(stack, Stack) and rest:
            others = sum(known[part] for part in stack.parts if part in known)
            plain.append((rest[0], (entries - others) // len(rest)))
    return plain
