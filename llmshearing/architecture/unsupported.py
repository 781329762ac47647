"""Kinds of models that are refused by name, with the reason."""

from collections.abc import Mapping
from typing import Any

EXPERTS = (
    "a mixture of experts: a router chooses among several MLPs in each layer, and there is no axis "
    "of experts"
)
HYBRID = (
    "a hybrid or recurrent model: layers with a state in place of attention have sizes that are "
    "no axis here"
)
SEVERAL = (
    "a model of several parts, such as text and vision: save its text decoder in a directory of "
    "its own"
)
# Some models are both; the first reason that fits is given.
BY_TYPE = {
    **dict.fromkeys(
        """bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba
        mamba2 minimax nemotron_h qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next
        recurrent_gemma rwkv xlstm zamba zamba2""".split(),
        HYBRID,
    ),
    **dict.fromkeys(
        """dbrx deepseek_v2 deepseek_v3 dots1 ernie4_5_moe flex_olmo glm4_moe gpt_oss granitemoe
        granitemoeshared hunyuan_v1_moe jetmoe llama4_text longcat_flash mixtral olmoe phimoe
        qwen2_moe qwen3_moe""".split(),
        EXPERTS,
    ),
    **dict.fromkeys(
        """gemma3 gemma3n gemma4 llama4 llava mistral3 mllama phi4_multimodal qwen2_5_vl qwen2_vl
        qwen3_vl qwen3_vl_moe""".split(),
        SEVERAL,
    ),
}
# Fields that only such models have, for types that are not listed.
BY_FIELD = {
    "linear_num_value_heads": HYBRID,
    "mamba_d_state": HYBRID,
    "ssm_state_size": HYBRID,
    "n_routed_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "text_config": SEVERAL,
}


def reason_against(config: Mapping[str, Any]) -> str | None:
    """Why a model of a type without a family cannot be pruned, or None if there is no reason."""
    by_type = BY_TYPE.get(str(config.get("model_type")))
    fields = (reason for name, reason in BY_FIELD.items() if config.get(name) is not None)
    return by_type or next(fields, None)
