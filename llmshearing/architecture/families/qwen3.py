"""Qwen3 (normalised queries and keys, explicit head size)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.families import qwen2
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Qwen3ForCausalLM`."""
    attention_bias = bool(config.get("attention_bias"))
    return llama_like.rows(
        config,
        shape,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        query_key_norm="per_head",
    )


FAMILY = Family(
    model_type="qwen3",
    blocks=llama_like.BLOCKS,
    rows=rows,
    layer_lists=("layer_types",),
    fields=qwen2.FIELDS | {"attention_bias"},
    fixed=llama_like.FIXED,
)
