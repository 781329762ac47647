"""The axes along which a decoder can shrink (paper, section 2.1)."""

from __future__ import annotations

from enum import Enum


class Axis(str, Enum):
    """A granularity of pruning.

    Under grouped-query attention a query head is addressed by its KV group and its place within
    the group: `KV_GROUP` counts groups and `HEAD` counts heads within a group. Under multi-head
    attention there is no `KV_GROUP` and `HEAD` counts heads.
    """

    HIDDEN = "hidden"
    LAYER = "layer"
    KV_GROUP = "kv_group"
    HEAD = "head"
    INTERMEDIATE = "intermediate"

    @property
    def per_layer(self) -> bool:
        """Whether every layer chooses its own units of this axis."""
        return self in (Axis.KV_GROUP, Axis.HEAD, Axis.INTERMEDIATE)
