"""Config fields that change the computation are supported or refused by name, in every family."""

import importlib.machinery
import importlib.util
import json

import pytest
import torch
from models_zoo import ROPE, ZOO
from transformers import AutoConfig

from llmshearing.architecture.families import all_families, family_of, read_config
from llmshearing.architecture.rope import ROPE_TYPES, with_older_rope
from llmshearing.architecture.stock_code import names_in_stock_code
from llmshearing.errors import UserError
from llmshearing.huggingface.source import read_source
from llmshearing.huggingface.stock import complete_fields, stock_config, stock_model

FAMILIES = sorted(all_families())


def stored(model_type: str, **fields) -> dict:
    """A config as stored in a model directory, with all defaults."""
    config = complete_fields(AutoConfig.for_model(model_type, **fields))
    return {key: value for key, value in config.items() if value is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_stock_config_is_known(family):
    all_families()[family].check_fields(stored(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "field", ["attention_chunk_size", "is_causal", "layer_types", "quantization_config"]
)
def test_a_field_that_the_stock_code_reads_is_refused_by_name(family, field):
    """Shared code reads these, whatever the family; a newer version may give them a meaning."""
    value = ["sliding_attention"] if field == "layer_types" else 0.5
    with pytest.raises(UserError, match=field) as refused:
        all_families()[family].check_fields(stored(family) | {field: value})
    assert "remove" not in str(refused.value)


def test_a_field_that_the_stock_code_never_reads_is_ignored_with_one_log_line(caplog):
    caplog.set_level("INFO")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 9}
    fields = stored("llama", **small)
    odd = {"logits_scaling": 0.5, "num_experts": 8, "residual_multiplier": 0.5}
    all_families()["llama"].check_fields(fields | odd)
    assert [record.getMessage() for record in caplog.records] == [
        "config.json has logits_scaling, num_experts, residual_multiplier, which the llama code of "
        "Transformers never reads: ignored"
    ]
    logits = []
    for config in (fields, fields | odd):
        torch.manual_seed(0)
        logits.append(stock_model(stock_config(config))(torch.arange(9)[None]).logits)
    assert torch.equal(*logits)


def test_code_that_reads_a_field_is_found(monkeypatch, tmp_path):
    for number, code in enumerate(
        [
            "x = config.one",
            "x = getattr(config, 'two', 0)",
            "x: int = 1  # three",
            "def f(four): ...",
        ]
    ):
        file = tmp_path / "models" / "odd" / f"modeling_{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    found = importlib.machinery.ModuleSpec("transformers", None, origin=str(tmp_path / "x.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    names = names_in_stock_code("odd")
    assert {"one", "two", "four"} <= names
    assert "three" not in names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_dropout", 0.1),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_a_value_that_is_not_supported_is_refused_by_name(family, field, value):
    with pytest.raises(UserError, match=f"{field}=.*{family} models are supported with {field}="):
        all_families()[family].check_fields(stored(family) | {field: value})


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "pretraining_tp", 2),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "sliding_window", 128),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gpt_neox", "hidden_dropout", 0.1),
        ("gpt_neox", "head_dim", 64),
        ("gpt_neox", "num_key_value_heads", 8),
        ("gpt_neox", "partial_rotary_factor", 0.5),
        ("gpt_neox", "rope_theta", 500_000),
    ],
)
def test_a_field_that_another_family_supports_is_refused_by_name(family, field, value):
    with pytest.raises(UserError, match=field):
        all_families()[family].check_fields(stored(family) | {field: value})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ROPE)
def test_known_rotary_scalings_pass(family, name):
    config = stored(family) | ({"head_dim": 8} if family == "mistral" else {})
    all_families()[family].check_fields(config | {"rope_scaling": ROPE[name]})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope", "mrope_section": [1]}, "type 'mrope'; supported are default, lin"),
        ({"type": "su", "factor": 2.0}, "type 'su'"),
        ({"factor": 2.0}, "type None"),
        ({"rope_type": ["linear"]}, r"of type \['linear'\]; supported are default"),
        ({"rope_type": "linear"}, "type 'linear' without factor"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 4}, "'linear' with beta_fast, which"),
        ({"rope_type": "llama3", "factor": 8.0}, "without high_freq_factor, low_freq_factor, orig"),
        ("linear", "expected a mapping"),
    ],
)
def test_unknown_rotary_scalings_are_refused_by_name(family, scaling, message):
    with pytest.raises(UserError, match=message):
        all_families()[family].check_fields(stored(family) | {"rope_scaling": scaling})


@pytest.mark.parametrize("value", ["linear", [1], 5, {"full_attention": "linear"}])
def test_rotary_settings_that_are_no_mappings_are_refused(value):
    newer = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(UserError, match=r"has rope_scaling=.*, but rope_parameters say"):
        with_older_rope({"rope_scaling": value, "rope_parameters": newer})
    with pytest.raises(UserError, match=r"config.json has rope_parameters=.*expected a mapping"):
        with_older_rope({"rope_parameters": value})


def test_lists_with_an_entry_per_layer_follow_the_kept_layers():
    config = stored("smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0])
    family = all_families()["smollm3"]
    shape = family.read_shape(config)
    assert family.reshaped(config, shape, [1, 2, 3])["no_rope_layers"] == [0, 1, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_stored_config_without_its_defaults_gives_the_same_table(family, tied, tmp_path):
    """Transformers leaves out what is usual for the family."""
    config = AutoConfig.for_model(family, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    stored = read_config(tmp_path)
    complete = complete_fields(config)
    assert all_families()[family].table(stored) == all_families()[family].table(complete)


def test_rotary_types_are_those_of_the_stock_models():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_TYPES) - {"default"} == set(ROPE_INIT_FUNCTIONS) - {"default", "proportional"}


@pytest.mark.parametrize(
    ("model_type", "fields", "shape"),
    [
        # Pythia 1.4B and RedPajama-INCITE-Base-3B as published.
        (
            "gpt_neox",
            {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
             "num_hidden_layers": 24, "rotary_pct": 0.25, "rotary_emb_base": 10000,
             "use_parallel_residual": True, "vocab_size": 50304, "layer_norm_eps": 1e-05},
            (2048, 24, 16, 16, 128, 8192, 50304),
        ),
        (
            "gpt_neox",
            {"hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
             "num_hidden_layers": 32, "rotary_pct": 1.0, "rotary_emb_base": 10000,
             "use_parallel_residual": False, "vocab_size": 50432, "layer_norm_eps": 1e-05},
            (2560, 32, 32, 32, 80, 10240, 50432),
        ),
        (
            "llama",
            {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
             "num_key_value_heads": 8, "num_hidden_layers": 16, "head_dim": 64,
             "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
             "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                              "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
            (2048, 16, 32, 8, 64, 8192, 128256),
        ),
        (
            "mistral",
            {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
             "num_key_value_heads": 8, "num_hidden_layers": 32, "sliding_window": 4096,
             "vocab_size": 32000},
            (4096, 32, 32, 8, 128, 14336, 32000),
        ),
        (
            "qwen2",
            {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
             "num_key_value_heads": 2, "num_hidden_layers": 24, "max_window_layers": 21,
             "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True,
             "vocab_size": 151936, "rope_theta": 1000000.0},
            (896, 24, 14, 2, 64, 4864, 151936),
        ),
        (
            "qwen3",
            {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
             "num_key_value_heads": 8, "num_hidden_layers": 28, "max_window_layers": 28,
             "head_dim": 128, "sliding_window": None, "use_sliding_window": False,
             "attention_bias": False, "tie_word_embeddings": True, "vocab_size": 151936},
            (1024, 28, 16, 8, 128, 3072, 151936),
        ),
        # With fields that Transformers never reads.
        (
            "qwen2",
            {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
             "num_key_value_heads": 4, "num_hidden_layers": 28, "max_window_layers": 28,
             "sliding_window": 131072, "use_mrope": False, "use_sliding_window": False,
             "tie_word_embeddings": False, "vocab_size": 152064, "rope_theta": 1000000.0},
            (3584, 28, 28, 4, 128, 18944, 152064),
        ),
        (
            "llama",
            {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
             "num_key_value_heads": 3, "num_hidden_layers": 30, "is_llama_config": True,
             "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
             "pretraining_tp": 1, "tie_word_embeddings": True, "vocab_size": 49152},
            (576, 30, 9, 3, 64, 1536, 49152),
        ),
        (
            "llama",
            {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
             "num_hidden_layers": 32, "max_sequence_length": 2048, "pad_token_id": 0,
             "rms_norm_eps": 1e-06, "vocab_size": 32000},
            (4096, 32, 32, 32, 128, 11008, 32000),
        ),
        (
            "gpt_neox",
            {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast",
             "hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64,
             "num_hidden_layers": 44, "layer_norm_eps": 1e-05, "rotary_emb_base": 10000,
             "rotary_pct": 0.25, "tie_word_embeddings": False, "vocab_size": 50432},
            (6144, 44, 64, 64, 96, 24576, 50432),
        ),
        (
            "llama",
            {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
             "num_key_value_heads": 8, "num_hidden_layers": 16, "head_dim": 64,
             "tie_word_embeddings": True, "vocab_size": 128256, "dtype": "bfloat16",
             "rope_parameters": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                 "original_max_position_embeddings": 8192,
                                 "rope_theta": 500000.0, "rope_type": "llama3"}},
            (2048, 16, 32, 8, 64, 8192, 128256),
        ),
    ],
    ids="""pythia-1.4b incite-3b llama-3.2-1b mistral-7b qwen2.5-0.5b qwen3-0.6b qwen2.5-7b
    smollm2-135m llama-7b gpt-neox-20b llama-3.2-1b-by-transformers-5""".split(),
)  # fmt: skip
def test_published_configs_are_read(tmp_path, model_type, fields, shape):
    config = {"model_type": model_type, "torch_dtype": "bfloat16", "use_cache": True, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = read_source(tmp_path)
    found = source.table.source
    assert (found.hidden, found.layers, found.heads, found.kv_groups) == shape[:4]
    assert (found.head_dim, found.intermediate, found.vocabulary) == shape[4:]


def read(folder, **fields) -> dict:
    (folder / "config.json").write_text(json.dumps(fields))
    return read_config(folder)


NEWER = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
OLDER = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}


@pytest.mark.parametrize("both", [{}, OLDER, {"rope_scaling": {"type": "linear", "factor": 2.0}}])
def test_either_form_of_rotary_settings_is_read(tmp_path, both):
    assert read(tmp_path, model_type="llama", rope_parameters=NEWER, **both) == {
        "model_type": "llama",
        **OLDER,
    }


def test_rotary_settings_take_the_names_of_the_family(tmp_path):
    newer = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    found = read(tmp_path, model_type="gpt_neox", rope_parameters=newer)
    assert found == {
        "model_type": "gpt_neox",
        "rotary_emb_base": 5e5,
        "rotary_pct": 0.5,
        "rope_scaling": None,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_parameters": NEWER, "rope_theta": 1e4}, "rope_theta=10000.0, but rope_parameters"),
        ({"rope_parameters": NEWER, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "equal"),
        ({"rope_parameters": 5}, "rope_parameters=5; expected a mapping"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "type 'proportional'; supported are"),
        (
            {"rope_parameters": {"full_attention": NEWER, "sliding_attention": {"rope_theta": 1}}},
            "sliding layers are supported",
        ),
    ],
)
def test_rotary_settings_that_disagree_are_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, model_type="llama", **fields)


# From the models' cards.
@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
          "num_hidden_layers": 6, "vocab_size": 50304}, 70_426_624),
        ({"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
          "num_hidden_layers": 24, "vocab_size": 50304}, 1_414_647_808),
    ],
    ids=["pythia-70m", "pythia-1.4b"],
)  # fmt: skip
def test_pythia_has_its_published_parameter_count(fields, count):
    config = stored("gpt_neox", **fields)
    table = family_of(config).table(config)
    assert table.parameter_count(table.source) == count


def test_every_family_of_the_zoo_exists():
    assert set(ZOO) <= set(FAMILIES)
