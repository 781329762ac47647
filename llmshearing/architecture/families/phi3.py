"""Phi-3 and Phi-4 (fused projections, partial rotary, long rotary scaling)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import LAYER_FIELD, Row, Stack
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape

# The stock model stores these projections as one, with the outputs in this order.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Phi3ForCausalLM`."""
    table = {row.name: row for row in llama_like.rows(config, shape)}
    for fused, names in FUSED.items():
        layer = f"{llama_like.BLOCKS}.{LAYER_FIELD}."
        dims = [table.pop(f"{layer}{name}.weight").dims for name in names]
        outputs = Stack(tuple(part for out, _ in dims for part in out.parts))
        name = f"{layer}{fused}.weight"
        table[name] = Row(name, (outputs, dims[0][1]))
    return tuple(table.values())


def implied_head_size(config: Mapping[str, Any]) -> bool:
    """Whether the rotary scaling is a list per frequency: the config checks its length."""
    return config.get("rope_scaling") is not None


FAMILY = Family(
    model_type="phi3",
    blocks=llama_like.BLOCKS,
    rows=rows,
    implied_head_size=implied_head_size,
    fields=llama_like.FIELDS
    | {"original_max_position_embeddings", "partial_rotary_factor", "sliding_window"},
    fixed={
        **llama_like.FIXED,
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "lm_head_bias": False,
        "mlp_bias": False,
        "resid_pdrop": 0.0,
    },
)
