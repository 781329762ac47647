"""Mistral (grouped-query attention, with or without a sliding window)."""

from __future__ import annotations

from llmshearing.architecture import llama_like
from llmshearing.architecture.family import Family

FAMILY = Family(
    model_type="mistral",
    blocks=llama_like.BLOCKS,
    rows=llama_like.rows,
    fields=llama_like.FIELDS | {"sliding_window"},
    fixed=llama_like.FIXED,
)
