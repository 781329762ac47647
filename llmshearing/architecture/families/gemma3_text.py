"""Gemma 3, text models (four norms per layer, stored as w - 1; embedding scaled by width)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.rope import ROPE_NAMES
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Gemma3ForCausalLM`.

    The model multiplies the embedding by the square root of the hidden size, but not the output
    head. If they are tied, the final norm has to make up for what export does to the embedding.
    """
    attention_bias = bool(config.get("attention_bias"))
    tied = bool(config.get("tie_word_embeddings"))
    table = llama_like.rows(
        config,
        shape,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        query_key_norm="per_head",
        norms_before=("input_layernorm", "pre_feedforward_layernorm"),
        norms_after=("post_attention_layernorm", "post_feedforward_layernorm"),
    )
    table = (replace(row, rounds_last=True, offset=1.0) if row.is_norm else row for row in table)
    powers = {"model.embed_tokens.weight": 1, "model.norm.weight": -1 if tied else 0}
    return tuple(replace(row, width_power=powers.get(row.name, 0)) for row in table)


# The stock model does not read attn_logit_softcapping.
FAMILY = Family(
    model_type="gemma3_text",
    blocks=llama_like.BLOCKS,
    rows=rows,
    heads_divide_hidden=lambda _: True,
    defaults={"tie_word_embeddings": True},
    layer_lists=("layer_types",),
    fields=llama_like.FIELDS - {"hidden_act"}
    | {
        "attention_bias",
        "cache_implementation",
        "final_logit_softcapping",
        "hidden_activation",
        "layer_types",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    },
    rope_names={**ROPE_NAMES, "sliding_attention": "rope_local_base_freq"},
    fixed={
        **llama_like.FIXED,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
)
