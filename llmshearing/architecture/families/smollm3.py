"""SmolLM3 (rotary positions in some layers only)."""

from llmshearing.architecture import llama_like
from llmshearing.architecture.families import llama
from llmshearing.architecture.family import Family

# no_rope_layer_interval only completes a config without no_rope_layers.
FAMILY = Family(
    model_type="smollm3",
    blocks=llama_like.BLOCKS,
    rows=llama.rows,
    defaults={"tie_word_embeddings": True},
    layer_lists=("layer_types", "no_rope_layers"),
    fields=llama_like.FIELDS
    | {
        "attention_bias",
        "layer_types",
        "mlp_bias",
        "no_rope_layer_interval",
        "no_rope_layers",
        "sliding_window",
        "use_sliding_window",
    },
    fixed=llama_like.FIXED,
)
