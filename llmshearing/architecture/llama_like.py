"""The rows that LLaMA and its descendants share: RMS norms, gated MLP, separate projections."""

from collections.abc import Mapping
from typing import Any, Literal

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import LAYER_FIELD, Dim, Row
from llmshearing.architecture.family import attention_dims
from llmshearing.architecture.shape import Shape

FIELDS = frozenset(
    "head_dim hidden_act num_key_value_heads rms_norm_eps rope_scaling rope_theta".split()
)
BLOCKS = "model.layers"
# With dropout a step would depend on how its batch is split into microbatches.
FIXED: Mapping[str, Any] = {"attention_dropout": 0.0}


def rows(
    config: Mapping[str, Any],
    shape: Shape,
    *,
    query_key_value_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    query_key_norm: Literal["per_head", "all_heads"] | None = None,
    norms_before: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
    norms_after: tuple[str, ...] = (),
) -> tuple[Row, ...]:
    """One row per parameter of the stock causal model.

    Queries and keys may be normalised, each head alone or all at once. Attention and MLP read the
    residual stream through `norms_before` and write to it through `norms_after`. These take the
    gates of the branch: before a norm, the gate of the layer would have no effect.
    """
    hidden, intermediate = Dim((Axis.HIDDEN,)), Dim((Axis.INTERMEDIATE,))
    vocabulary, head_dim = Dim(multiple=shape.vocabulary), Dim(multiple=shape.head_dim)
    query, key_value = attention_dims(shape)
    tied = bool(config.get("tie_word_embeddings"))
    layer = f"{BLOCKS}.{LAYER_FIELD}."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    writes = not norms_after  # whether projections write to the residual stream themselves
    out = hidden.with_gate if writes else hidden
    table = [
        Row("model.embed_tokens.weight", (vocabulary, hidden.with_gate)),
        *(Row(f"{layer}{norm}.weight", (hidden.with_gate,)) for norm in norms_before),
        Row(attention + "q_proj.weight", (query, hidden)),
        Row(attention + "k_proj.weight", (key_value, hidden)),
        Row(attention + "v_proj.weight", (key_value, hidden)),
        Row(attention + "o_proj.weight", (out, query.with_gate), layer_gated=writes),
        Row(mlp + "gate_proj.weight", (intermediate, hidden)),
        Row(mlp + "up_proj.weight", (intermediate, hidden)),
        Row(mlp + "down_proj.weight", (out, intermediate.with_gate), layer_gated=writes),
        *(
            Row(f"{layer}{norm}.weight", (hidden.with_gate,), layer_gated=True)
            for norm in norms_after
        ),
        # A tied output head is the embedding, which already contains the hidden gate.
        Row("model.norm.weight", (hidden.with_gate,), absorbs=not tied),
    ]
    if query_key_value_bias:
        table += [
            Row(attention + "q_proj.bias", (query,)),
            Row(attention + "k_proj.bias", (key_value,)),
            Row(attention + "v_proj.bias", (key_value,)),
        ]
    if output_bias:
        table.append(Row(attention + "o_proj.bias", (out,), layer_gated=writes))
    if query_key_norm is not None:
        whole = query_key_norm == "all_heads"
        table += [
            Row(attention + "q_norm.weight", (query if whole else head_dim,)),
            Row(attention + "k_norm.weight", (key_value if whole else head_dim,)),
        ]
    if mlp_bias:
        table += [
            Row(mlp + "gate_proj.bias", (intermediate,)),
            Row(mlp + "up_proj.bias", (intermediate,)),
            Row(mlp + "down_proj.bias", (out,), layer_gated=writes),
        ]
    if not tied:
        table.append(Row("lm_head.weight", (vocabulary, hidden)))
    return tuple(table)
