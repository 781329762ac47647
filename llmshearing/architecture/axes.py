"""The axes along which a decoder can shrink (paper, section 2.1)."""

from enum import Enum


class Axis(str, Enum):
    """A granularity of pruning.

    Under grouped-query attention `KV_GROUP` counts the groups and `HEAD` the query heads within a
    group. Under multi-head attention there is no `KV_GROUP`, and `HEAD` counts the heads.
    """

    HIDDEN = "hidden"
    LAYER = "layer"
    KV_GROUP = "kv_group"
    HEAD = "head"
    INTERMEDIATE = "intermediate"

    @property
    def per_layer(self) -> bool:
        """Whether each layer keeps its own units of this axis."""
        return self in (Axis.KV_GROUP, Axis.HEAD, Axis.INTERMEDIATE)
