"""OLMo 2 (norms after the branches, queries and keys normalised across all heads)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Olmo2ForCausalLM` and `Olmo3ForCausalLM`."""
    attention_bias = bool(config.get("attention_bias"))
    table = llama_like.rows(
        config,
        shape,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        query_key_norm="all_heads",
        norms_before=(),
        norms_after=("post_attention_layernorm", "post_feedforward_layernorm"),
    )
    return tuple(replace(row, rounds_last=row.is_norm) for row in table)


FIELDS = llama_like.FIELDS | {"attention_bias"}

FAMILY = Family(
    model_type="olmo2",
    blocks=llama_like.BLOCKS,
    rows=rows,
    fields=FIELDS,
    fixed=llama_like.FIXED,
)
