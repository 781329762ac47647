"""Qwen2 and Qwen2.5 (biases on queries, keys and values; tied in the small ones)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import family, llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Qwen2ForCausalLM`."""
    return llama_like.rows(config, shape, query_key_value_bias=True)


def write_shape(shape: Shape) -> dict[str, Any]:
    """The config fields of a shape; every layer has full attention."""
    return family.write_shape(shape) | {"layer_types": ["full_attention"] * shape.layers}


# The size and the first layer of the window have no effect without sliding attention.
FIELDS = llama_like.FIELDS | {"layer_types", "max_window_layers", "sliding_window"}
FIXED: Mapping[str, Any] = {**llama_like.FIXED, "use_sliding_window": False}


def config_error(config: Mapping[str, Any]) -> str | None:
    """Refuse sliding attention: once layers are removed, `layer_types` would not match them."""
    others = sorted(set(config.get("layer_types", ())) - {"full_attention"})
    if not others:
        return None
    return (
        f"config.json has layer_types with {', '.join(others)}, but {config['model_type']} models "
        "are supported with full_attention in every layer only"
    )


FAMILY = Family(
    model_type="qwen2",
    blocks=llama_like.BLOCKS,
    write_shape=write_shape,
    rows=rows,
    fields=FIELDS,
    fixed=FIXED,
    config_error=config_error,
)
