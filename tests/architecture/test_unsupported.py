"""Models that are no dense text decoder are refused by name, with the reason."""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from llmshearing.architecture.families import all_families, family_of
from llmshearing.architecture.unsupported import BY_TYPE
from llmshearing.errors import UserError


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"model_type": "gpt_oss"}, "mixture of experts"),
        ({"model_type": "jamba", "num_experts": 16}, "hybrid"),
        ({"model_type": "qwen3_next", "num_experts": 512}, "hybrid"),
        ({"model_type": "nemotron_h"}, "hybrid"),
        ({"model_type": "granitemoehybrid"}, "hybrid"),
        ({"model_type": "gemma3", "text_config": {}}, "text decoder in a directory of its own"),
        ({"model_type": "new_moe", "n_routed_experts": 8}, "mixture of experts"),
        ({"model_type": "new_hybrid", "linear_num_value_heads": 8}, "hybrid"),
        ({"model_type": "new_vision", "text_config": {}}, "several parts"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_that_is_no_dense_decoder_is_refused_with_the_reason(config, reason):
    message = f"found model_type '{config['model_type']}', .*{reason}.*; expected one of .*llama"
    with pytest.raises(UserError, match=message):
        family_of(config)


def test_no_family_is_refused_and_names_are_those_of_transformers():
    assert not BY_TYPE.keys() & all_families().keys()
    newer = {"gemma4", "kimi_linear", "lfm2_moe", "nemotron_h", "qwen3_5", "qwen3_5_moe",
             "qwen3_5_moe_text", "qwen3_5_text"}  # fmt: skip
    assert BY_TYPE.keys() - newer <= CONFIG_MAPPING_NAMES.keys()
