"""What a forward pass keeps for the backward pass, in bytes.

Closed forms of what autograd saves of the stock model and its gated modules, counted once per
storage; a test holds them against the tensors that a real forward saves.

Shape legend: N tokens of a microbatch, d hidden, q heads x head_dim, k KV groups x head_dim,
m intermediate, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, Row


@dataclass(frozen=True)
class Numbers:
    """Bytes per number in the three ways in which a model is computed.

    Attributes:
        name: `float32`, `autocast` (bf16, weights in float32) or `sharded` (bf16, FSDP2 casts).
        compute: of projections, attention and logits.
        stream: of the residual stream. Autocast adds to the float32 embedding, so it stays float32.
        norm: saved per norm and hidden unit: its float32 input and the normalised value.
        input: of a norm's output as one projection keeps it.
        copies: whether every projection keeps a cast of its own of the norm's output, and the
            weights a cast each until the backward pass is over.
    """

    name: str
    compute: int
    stream: int
    norm: int
    input: int
    copies: bool


FLOAT32 = Numbers("float32", compute=4, stream=4, norm=8, input=4, copies=False)
AUTOCAST = Numbers("autocast", compute=2, stream=4, norm=8, input=2, copies=True)
SHARDED = Numbers("sharded", compute=2, stream=2, norm=6, input=2, copies=False)


def numbers_of(precision: str, *, sharded: bool) -> Numbers:
    """How a run of this precision computes."""
    if precision == "fp32":
        return FLOAT32
    return SHARDED if sharded else AUTOCAST


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass.

    Attributes:
        rows: their number.
        length: tokens in a row.
    """

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return self.rows * self.length


@dataclass(frozen=True)
class Activations:
    """Saved bytes of one forward.

    Attributes:
        layer: of one decoder layer.
        stream: of the residual stream between two layers.
        rest: embedding, final norm and rotary tables.
        weights: casts of the weights outside the layers (autocast).
    """

    layer: int
    stream: int
    rest: int
    weights: int


def activations(
    table: CouplingTable, batch: Batch, numbers: Numbers, pruned: tuple[Axis, ...], mask: bool
) -> Activations:
    """What one forward saves.

    Args:
        table: of the model.
        batch: its rows.
        numbers: how it computes.
        pruned: axes with a mask.
        mask: whether attention gets a mask tensor and repeated KV heads rather than a causal flag.
    """
    shape, tokens = table.source, batch.tokens
    final = numbers.norm + numbers.input
    rest = tokens * shape.hidden * final + 4 * tokens + 8 * tokens
    rest += 2 * batch.length * shape.head_dim * (2 if numbers is SHARDED else 4)
    if Axis.HIDDEN in pruned:
        rest += tokens * shape.hidden * numbers.stream  # what the embedding's gate multiplies
    head = shape.vocabulary * shape.hidden * 2 if numbers.copies else 0
    return Activations(
        layer=_layer(table, batch, numbers, mask) + gated_weights(table, numbers, pruned),
        stream=tokens * shape.hidden * numbers.stream,
        rest=rest,
        weights=head,
    )


def _layer(table: CouplingTable, batch: Batch, numbers: Numbers, mask: bool) -> int:
    shape, tokens = table.source, batch.tokens
    names = {row.name.rpartition("}.")[2] for row in table.rows if row.per_layer}
    query, key = shape.heads * shape.head_dim, shape.kv_groups * shape.head_dim
    norms = sum(row.per_layer and _is_norm(row) for row in table.rows)
    # each reader of a norm's output keeps a cast of its own, or all of them the output itself
    uses = _reading(table, Axis.HIDDEN) if numbers.copies else norms
    saved = tokens * shape.hidden * (norms * numbers.norm + uses * numbers.input)
    saved += tokens * 4 * norms  # reciprocal root mean squares
    # the input and the output of the activation, and of its product with the gate's branch
    saved += tokens * 2 * _writing(table, Axis.INTERMEDIATE) * shape.intermediate * numbers.compute
    saved += tokens * (2 * query + 2 * (query if mask else key)) * numbers.compute
    if "self_attn.q_norm.weight" in names:
        inner = 4 + numbers.compute
        saved += tokens * ((query + key) * inner + 4 * (shape.heads + shape.kv_groups))
    saved += tokens * shape.heads * 4  # attention's log-sum-exp
    if mask:
        saved += batch.rows * batch.length**2 * numbers.compute
    if numbers.copies:
        saved += 2 * sum(_elements(table, row) for row in table.rows if _is_layer_matrix(row))
    return saved


def gated_weights(table: CouplingTable, numbers: Numbers, pruned: tuple[Axis, ...]) -> int:
    """Products of weights and gates that one layer keeps.

    A projection gated on both sides keeps the product with one gate for the other's gradient; the
    full product is what its matrix multiplication keeps.
    """
    saved = 0
    for row in table.rows:
        if not (_is_layer_matrix(row) and row.gated):
            continue
        inside = any(axis in pruned for axis in row.dims[1].axes) and row.dims[1].gated
        outside = any(axis in pruned for axis in row.dims[0].axes) and row.dims[0].gated
        outside = outside or (row.layer_gated and Axis.LAYER in pruned)
        products = int(inside) + int(outside)
        if products:
            full = {"float32": 4, "autocast": 0, "sharded": 2}[numbers.name]
            saved += _elements(table, row) * (4 * (products - 1) + full)
    return saved


def largest_matrix(table: CouplingTable) -> int:
    """Elements of the largest matrix of a layer."""
    return max(_elements(table, row) for row in table.rows if _is_layer_matrix(row))


def layer_elements(table: CouplingTable) -> int:
    """Parameters of one layer."""
    return sum(_elements(table, row) for row in table.rows if row.per_layer)


def outer_elements(table: CouplingTable) -> int:
    """Parameters outside the layers."""
    return sum(_elements(table, row) for row in table.rows if not row.per_layer)


def _elements(table: CouplingTable, row: Row) -> int:
    sizes = table.sizes(table.source)
    return math.prod(dim.size(sizes) for dim in row.dims)


def _reading(table: CouplingTable, axis: Axis) -> int:
    """Projections of a layer whose input is along an axis."""
    return sum(_is_layer_matrix(row) and row.dims[1].axes == (axis,) for row in table.rows)


def _writing(table: CouplingTable, axis: Axis) -> int:
    """Projections of a layer whose output is along an axis: two in a gated MLP, else one."""
    return sum(_is_layer_matrix(row) and row.dims[0].axes == (axis,) for row in table.rows)


def _is_layer_matrix(row: Row) -> bool:
    return row.per_layer and len(row.dims) == 2


def _is_norm(row: Row) -> bool:
    return len(row.dims) == 1 and row.dims[0].axes == (Axis.HIDDEN,) and row.name.endswith("weight")
