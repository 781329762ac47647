"""Qwen2 and Qwen2.5 (biases on queries, keys and values; tied in the small ones)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Qwen2ForCausalLM`."""
    tied = bool(config.get("tie_word_embeddings"))
    return llama_like.rows(shape, tied=tied, query_key_value_bias=True)


def write_shape(shape: Shape) -> dict[str, Any]:
    """The config fields of a shape; every layer attends to everything."""
    return llama_like.write_shape(shape) | {"layer_types": ["full_attention"] * shape.layers}


# The window's size and first layer mean nothing while no layer slides.
FIELDS = llama_like.FIELDS | {"layer_types", "max_window_layers", "sliding_window"}
FIXED: Mapping[str, Any] = {**llama_like.FIXED, "use_sliding_window": False}


def config_error(config: Mapping[str, Any]) -> str | None:
    """Layers that attend differently could not be told apart once some are gone."""
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
    read_shape=llama_like.read_shape,
    write_shape=write_shape,
    rows=rows,
    fields=FIELDS,
    fixed=FIXED,
    config_error=config_error,
)
