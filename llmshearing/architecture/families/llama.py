"""LLaMA 1, 2 and 3 (multi-head or grouped-query attention, tied or untied embeddings)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import Dim, Row
from llmshearing.architecture.family import Family, attention_dims
from llmshearing.architecture.shape import Shape


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a LLaMA config states, with its defaults filled in."""
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
    )


def write_shape(shape: Shape) -> dict[str, Any]:
    """The config fields of a shape; `head_dim` stands by itself, since pruning keeps it."""
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_groups,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
    }


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `LlamaForCausalLM`."""
    tied = bool(config.get("tie_word_embeddings"))
    hidden, intermediate = Dim((Axis.HIDDEN,)), Dim((Axis.INTERMEDIATE,))
    vocabulary = Dim(multiple=shape.vocabulary)
    query, key_value = attention_dims(shape)
    layer = "model.layers.{layer}."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    table = [
        Row("model.embed_tokens.weight", (vocabulary, hidden.with_gate)),
        Row(layer + "input_layernorm.weight", (hidden.with_gate,)),
        Row(attention + "q_proj.weight", (query, hidden)),
        Row(attention + "k_proj.weight", (key_value, hidden)),
        Row(attention + "v_proj.weight", (key_value, hidden)),
        Row(attention + "o_proj.weight", (hidden.with_gate, query.with_gate), layer_gated=True),
        Row(layer + "post_attention_layernorm.weight", (hidden.with_gate,)),
        Row(mlp + "gate_proj.weight", (intermediate, hidden)),
        Row(mlp + "up_proj.weight", (intermediate, hidden)),
        Row(mlp + "down_proj.weight", (hidden.with_gate, intermediate.with_gate), layer_gated=True),
        # With tied embeddings the output head is the embedding, which already carries the gate.
        Row("model.norm.weight", (hidden.with_gate,), absorbs=not tied),
    ]
    if config.get("attention_bias"):
        table += [
            Row(attention + "q_proj.bias", (query,)),
            Row(attention + "k_proj.bias", (key_value,)),
            Row(attention + "v_proj.bias", (key_value,)),
            Row(attention + "o_proj.bias", (hidden.with_gate,), layer_gated=True),
        ]
    if config.get("mlp_bias"):
        table += [
            Row(mlp + "gate_proj.bias", (intermediate,)),
            Row(mlp + "up_proj.bias", (intermediate,)),
            Row(mlp + "down_proj.bias", (hidden.with_gate,), layer_gated=True),
        ]
    if not tied:
        table.append(Row("lm_head.weight", (vocabulary, hidden)))
    return tuple(table)


FAMILY = Family(
    model_type="llama",
    read_shape=read_shape,
    write_shape=write_shape,
    rows=rows,
    fields=frozenset(
        """attention_bias attention_dropout head_dim hidden_act mlp_bias num_key_value_heads
        rms_norm_eps rope_scaling rope_theta""".split()
    ),
    fixed={"pretraining_tp": 1},
)
