"""Mistral (grouped-query attention, with or without a sliding window)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `MistralForCausalLM`."""
    return llama_like.rows(shape, tied=bool(config.get("tie_word_embeddings")))


FAMILY = Family(
    model_type="mistral",
    blocks=llama_like.BLOCKS,
    read_shape=llama_like.read_shape,
    write_shape=llama_like.write_shape,
    rows=rows,
    fields=llama_like.FIELDS | {"sliding_window"},
    fixed=llama_like.FIXED,
)
