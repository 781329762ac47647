"""The rotary scalings of Transformers that pruning passes on unchanged.

Head sizes and positions stay as they are, so a scaling that the stock model computes holds for the
pruned model too. One that it would not compute, or would compute in part, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STRETCH = frozenset({"attention_factor", "original_max_position_embeddings"})

# Per type: the keys that it needs, and those that it may have (Transformers 4.57,
# `modeling_rope_utils.py`). `type` is the old name of `rope_type`.
ROPE_TYPES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset({"original_max_position_embeddings"})),
    "yarn": (
        frozenset({"factor"}),
        _STRETCH | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "longrope": (frozenset({"factor", "long_factor", "short_factor"}), _STRETCH),
    "llama3": (
        frozenset(
            """factor high_freq_factor low_freq_factor
            original_max_position_embeddings""".split()
        ),
        frozenset(),
    ),
}


def rope_error(scaling: Any) -> str | None:
    """What is wrong with a config's `rope_scaling`, or None.

    Args:
        scaling: the field as `config.json` stores it, or None.
    """
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        return f"config.json has rope_scaling={scaling!r}; expected a mapping with a rope_type"
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ROPE_TYPES:
        return (
            f"config.json has rope_scaling of type {kind!r}; supported are {', '.join(ROPE_TYPES)}"
        )
    needed, optional = ROPE_TYPES[kind]
    missing = sorted(key for key in needed if scaling.get(key) is None)
    if missing:
        return f"config.json has rope_scaling of type {kind!r} without {', '.join(missing)}"
    unknown = sorted(scaling.keys() - needed - optional - {"rope_type", "type"})
    if unknown:
        return (
            f"config.json has rope_scaling of type {kind!r} with {', '.join(unknown)}, which this "
            "type does not use; remove what the model does without"
        )
    return None
