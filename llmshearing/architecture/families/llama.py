"""LLaMA 1, 2 and 3 (multi-head or grouped-query attention, tied or untied embeddings)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `LlamaForCausalLM`."""
    attention_bias = bool(config.get("attention_bias"))
    return llama_like.rows(
        config,
        shape,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias")),
    )


FAMILY = Family(
    model_type="llama",
    blocks=llama_like.BLOCKS,
    rows=rows,
    fields=llama_like.FIELDS | {"attention_bias", "mlp_bias"},
    fixed={**llama_like.FIXED, "pretraining_tp": 1},
)
