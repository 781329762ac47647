"""LLaMA 1, 2 and 3 (multi-head or grouped-query attention, tied or untied embeddings)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import family, llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `LlamaForCausalLM` and models with the same parameters."""
    attention_bias = bool(config.get("attention_bias"))
    return llama_like.rows(
        config,
        shape,
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias")),
    )


def write_shape(shape: Shape) -> dict[str, Any]:
    """The config fields of a shape.

    Transformers refuses a LLaMA config whose heads do not divide the hidden size (since 5.5.4),
    although its head size is a field. Mistral without a window is the same model without that rule.
    """
    fields = family.write_shape(shape)
    if shape.hidden % shape.heads:
        fields |= {"model_type": "mistral", "sliding_window": None}
    return fields


def heads_divide_hidden(config: Mapping[str, Any]) -> bool:
    """Whether no config holds other sizes: Mistral's model has no biases."""
    return bool(config.get("attention_bias") or config.get("mlp_bias"))


FAMILY = Family(
    model_type="llama",
    blocks=llama_like.BLOCKS,
    write_shape=write_shape,
    heads_divide_hidden=heads_divide_hidden,
    rows=rows,
    fields=llama_like.FIELDS | {"attention_bias", "mlp_bias"},
    fixed={**llama_like.FIXED, "pretraining_tp": 1},
)
