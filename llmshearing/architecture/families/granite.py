"""Granite 3, dense (LLaMA with constant multipliers, which do not depend on any size)."""

from llmshearing.architecture import llama_like
from llmshearing.architecture.families import llama
from llmshearing.architecture.family import Family

FAMILY = Family(
    model_type="granite",
    blocks=llama_like.BLOCKS,
    rows=llama.rows,
    fields=llama_like.FIELDS
    | {
        "attention_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "mlp_bias",
        "residual_multiplier",
    },
    fixed=llama_like.FIXED,
)
