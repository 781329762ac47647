"""Mistral (grouped-query attention, with or without a sliding window)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.family import Family

# The stock rotary embeddings of these types read the head size, which the stock config of Mistral
# leaves unset, unlike that of LLaMA.
WITHOUT_HEAD_SIZE = ("default", "linear")


def config_error(config: Mapping[str, Any]) -> str | None:
    """Refuse a rotary scaling that the stock model cannot compute."""
    scaling = config.get("rope_scaling")
    kind = scaling and scaling.get("rope_type", scaling.get("type"))
    if kind is None or kind in WITHOUT_HEAD_SIZE or "head_dim" in config:
        return None
    return (
        f"config.json has rope_scaling of type {kind!r} and no head_dim, which Transformers needs "
        "for it; add head_dim = hidden_size / num_attention_heads"
    )


FAMILY = Family(
    model_type="mistral",
    blocks=llama_like.BLOCKS,
    rows=llama_like.rows,
    fields=llama_like.FIELDS | {"sliding_window"},
    fixed={**llama_like.FIXED, "attention_bias": False, "mlp_bias": False},  # left by a LLaMA
    config_error=config_error,
)
