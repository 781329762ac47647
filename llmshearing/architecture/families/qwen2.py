"""Qwen2 and Qwen2.5 (biases on queries, keys and values; tied in the small ones)."""

from collections.abc import Mapping
from typing import Any

from llmshearing.architecture import llama_like
from llmshearing.architecture.coupling import Row
from llmshearing.architecture.family import Family
from llmshearing.architecture.shape import Shape


def rows(config: Mapping[str, Any], shape: Shape) -> tuple[Row, ...]:
    """One row per parameter of `Qwen2ForCausalLM`."""
    return llama_like.rows(config, shape, query_key_value_bias=True)


FIELDS = llama_like.FIELDS | {
    "layer_types",
    "max_window_layers",
    "sliding_window",
    "use_sliding_window",
}

FAMILY = Family(
    model_type="qwen2",
    blocks=llama_like.BLOCKS,
    rows=rows,
    layer_lists=("layer_types",),
    fields=FIELDS,
    fixed=llama_like.FIXED,
)
