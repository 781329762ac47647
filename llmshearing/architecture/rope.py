"""The rotary scalings of Transformers that pruning passes on unchanged.

Head sizes and positions do not change, so a scaling of the source is right for the pruned model.
Scalings that the stock model ignores, or applies in part, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRETCH = "attention_factor original_max_position_embeddings"
# By type: its required and its optional keys (Transformers 4.57, `modeling_rope_utils.py`). `type`
# is the old name of `rope_type`.
ROPE_TYPES = {
    "default": ("", ""),
    "linear": ("factor", ""),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", f"{STRETCH} beta_fast beta_slow mscale mscale_all_dim truncate"),
    "longrope": ("factor long_factor short_factor", STRETCH),
    "llama3": ("factor high_freq_factor low_freq_factor original_max_position_embeddings", ""),
}


def rope_error(scaling: Any) -> str | None:
    """What is wrong with the `rope_scaling` of a stored config, or None."""
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        return f"config.json has rope_scaling={scaling!r}; expected a mapping with a rope_type"
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ROPE_TYPES:
        return (
            f"config.json has rope_scaling of type {kind!r}; supported are {', '.join(ROPE_TYPES)}"
        )
    required, optional = (set(keys.split()) for keys in ROPE_TYPES[kind])
    missing = sorted(key for key in required if scaling.get(key) is None)
    if missing:
        return f"config.json has rope_scaling of type {kind!r} without {', '.join(missing)}"
    unknown = sorted(scaling.keys() - required - optional - {"rope_type", "type"})
    if unknown:
        return (
            f"config.json has rope_scaling of type {kind!r} with {', '.join(unknown)}, which this "
            "type does not use; remove those keys"
        )
    return None
