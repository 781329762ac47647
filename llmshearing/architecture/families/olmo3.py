"""OLMo 3 (OLMo 2 with a sliding window in most layers)."""

from llmshearing.architecture import llama_like
from llmshearing.architecture.families import olmo2
from llmshearing.architecture.family import Family

FAMILY = Family(
    model_type="olmo3",
    blocks=llama_like.BLOCKS,
    rows=olmo2.rows,
    layer_lists=("layer_types",),
    fields=olmo2.FIELDS | {"layer_types", "sliding_window"},
    fixed=llama_like.FIXED,
    needs_newer_rope=True,
)
