"""Ministral 3, text models (Mistral with queries scaled by position; Transformers 5 has it)."""

from llmshearing.architecture import llama_like
from llmshearing.architecture.family import Family

FAMILY = Family(
    model_type="ministral3",
    blocks=llama_like.BLOCKS,
    rows=llama_like.rows,
    fields=llama_like.FIELDS | {"sliding_window"},
    fixed=llama_like.FIXED,
    rope_keys=frozenset({"llama_4_scaling_beta", "max_position_embeddings"}),
)
