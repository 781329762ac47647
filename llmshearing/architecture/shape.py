"""The shape of a decoder: everything that determines the sizes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmshearing.architecture.axes import Axis


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, in units rather than parameters."""

    hidden: int  # width of the residual stream
    layers: int  # number of decoder layers
    heads: int  # query heads per layer
    kv_groups: int  # key-value heads per layer; equal to `heads` under multi-head attention
    head_dim: int  # size of a head; never pruned
    intermediate: int  # inner width of the MLP
    vocabulary: int  # rows of the token embedding; never pruned

    @property
    def name(self) -> str:
        """The sizes that pruning changes, as text."""
        return f"l{self.layers}-d{self.hidden}-h{self.heads}-g{self.kv_groups}-i{self.intermediate}"

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_groups


def implied_head_size_error(shape: Shape) -> str | None:
    """Why a config that derives the head size as hidden / heads cannot hold `shape`, or None."""
    if shape.hidden == shape.heads * shape.head_dim:
        return None
    nearest = max(1, round(shape.hidden / shape.head_dim))
    return (
        f"found hidden {shape.hidden} with {shape.heads} heads of size {shape.head_dim}, but this "
        f"family's config derives the head size as hidden / heads, which would be "
        f"{shape.hidden / shape.heads:g}; give hidden = {shape.heads * shape.head_dim} for "
        f"{shape.heads} heads, or {nearest} heads with hidden = {nearest * shape.head_dim}"
    )


def head_count_error(shape: Shape) -> str | None:
    """Why Transformers refuses a config that demands that heads divide hidden, or None."""
    remainder = shape.hidden % shape.heads
    if not remainder:
        return None
    below, above = shape.hidden - remainder, shape.hidden - remainder + shape.heads
    return (
        f"found hidden {shape.hidden} with {shape.heads} heads, but Transformers loads no such "
        "model of this family: the heads must divide the hidden size; give hidden = "
        f"{f'{below} or ' if below else ''}{above} for {shape.heads} heads"
    )


def axis_sizes(shape: Shape, *, grouped: bool) -> dict[Axis, int]:
    """The units of each axis (per layer, for the per-layer axes).

    `grouped` says whether the *source* uses grouped-query attention. A target has the axes of its
    source, so a group of one head still counts as a group.
    """
    sizes = {Axis.HIDDEN: shape.hidden, Axis.LAYER: shape.layers}
    if grouped:
        sizes |= {Axis.KV_GROUP: shape.kv_groups, Axis.HEAD: shape.heads_per_group}
    else:
        sizes |= {Axis.HEAD: shape.heads}
    return sizes | {Axis.INTERMEDIATE: shape.intermediate}


def sized(source: Shape, sizes: Mapping[Axis, int], *, grouped: bool) -> Shape:
    """The source's shape with other sizes per axis; the inverse of `axis_sizes`."""
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
