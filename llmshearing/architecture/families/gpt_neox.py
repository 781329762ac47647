"""GPT-NeoX: Pythia, RedPajama-INCITE (LayerNorm, fused attention input, partial rotary)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import family
from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import LAYER_FIELD, Dim, Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape, implied_head_size_error
from llmshearing.errors import UserError

BLOCKS = "gpt_neox.layers"


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a complete config states; each head has its own keys and values."""
    return family.read_shape({**config, "num_key_value_heads": None, "head_dim": None})


def write_shape(shape: Shape) -> dict[str, Any]:
    """The config fields of a shape.

    Raises:
        UserError: the head size is not hidden / heads, and the config has no field for it.
    """
    if error := implied_head_size_error(shape):
        raise UserError(error)
    fields = family.write_shape(shape)
    return {n: size for n, size in fields.items() if n not in ("num_key_value_heads", "head_dim")}


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `GPTNeoXForCausalLM`, with parallel or sequential branches.

    The fused projection is stored as [heads, 3, head_dim], so a head is 3 x head_dim adjacent rows.
    A bias on the residual stream takes the gates of the stream (hidden, layer), but not those of
    the inputs of its projection.
    """
    hidden, intermediate = Dim((Axis.HIDDEN,)), Dim((Axis.INTERMEDIATE,))
    vocabulary = Dim(multiple=shape.vocabulary)
    fused, head = Dim((Axis.HEAD,), 3 * shape.head_dim), Dim((Axis.HEAD,), shape.head_dim)
    stream = hidden.with_gate
    tied = bool(config.get("tie_word_embeddings"))
    layer = f"{BLOCKS}.{LAYER_FIELD}."
    attention, mlp = layer + "attention.", layer + "mlp."
    table = [
        Row("gpt_neox.embed_in.weight", (vocabulary, stream)),
        *(
            Row(f"{layer}{norm}.{parameter}", (stream,))
            for norm in ("input_layernorm", "post_attention_layernorm")
            for parameter in ("weight", "bias")
        ),
        Row(attention + "query_key_value.weight", (fused, hidden)),
        Row(attention + "dense.weight", (stream, head.with_gate), layer_gated=True),
        Row(mlp + "dense_h_to_4h.weight", (intermediate, hidden)),
        Row(mlp + "dense_h_to_4h.bias", (intermediate,)),
        Row(mlp + "dense_4h_to_h.weight", (stream, intermediate.with_gate), layer_gated=True),
        Row(mlp + "dense_4h_to_h.bias", (stream,), layer_gated=True),
        # A tied output head is the embedding, which already contains the hidden gate.
        Row("gpt_neox.final_layer_norm.weight", (stream,), absorbs=not tied),
        Row("gpt_neox.final_layer_norm.bias", (stream,), absorbs=not tied),
    ]
    if config.get("attention_bias", True):
        table += [
            Row(attention + "query_key_value.bias", (fused,)),
            Row(attention + "dense.bias", (stream,), layer_gated=True),
        ]
    if not tied:
        table.append(Row("embed_out.weight", (vocabulary, hidden)))
    return tuple(table)


# The stock config overwrites the first field of each pair with the second.
DERIVED_FIELDS = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}


def config_error(config: Mapping[str, Any]) -> str | None:
    """Refuse a stored field that the stock model overwrites with another value."""
    for name, origin in DERIVED_FIELDS.items():
        if name in config and config[name] != config.get(origin):
            return (
                f"config.json has {name}={config[name]!r} and {origin}={config.get(origin)!r}; "
                f"gpt_neox models compute with {origin}, so set that one and remove {name}"
            )
    return None


FAMILY = Family(
    model_type="gpt_neox",
    blocks=BLOCKS,
    head="embed_out",
    read_shape=read_shape,
    write_shape=write_shape,
    rows=rows,
    implied_head_size=lambda _: True,
    fields=frozenset(
        """attention_bias classifier_dropout hidden_act layer_norm_eps partial_rotary_factor
        rope_scaling rope_theta rotary_emb_base rotary_pct use_parallel_residual""".split()
    ),
    fixed={"attention_dropout": 0.0, "hidden_dropout": 0.0},
    rope_names={
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
        "sliding_attention": "",
    },
    config_error=config_error,
)
