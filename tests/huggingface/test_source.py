"""Weights read one at a time give the model that Transformers loads; what does not fit is named."""

import json

import pytest
import torch
from models_zoo import build, extras, variants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import substrate
from llmshearing.architecture.families import read_config
from llmshearing.errors import UserError
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.huggingface.stock import complete_fields, stock_config, write_config
from llmshearing.huggingface.weight_files import WeightFiles


@pytest.fixture
def folder(tmp_path):
    model, _ = build(variants()[0])
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("variant", variants(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_what_transformers_loads(tmp_path, variant, dtype):
    model, _ = build(variant)
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = load_model(read_source(tmp_path))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    substrate.name_head(theirs, read_source(tmp_path).family.head)
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name
    tokens = torch.randint(0, 37, (2, 9))
    tied = model.config.tie_word_embeddings
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert (ours.get_output_embeddings().weight is ours.get_input_embeddings().weight) == tied
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.training is theirs.training
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_pickled_weights_are_read_too(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    loaded = load_model(read_source(folder)).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_rotary_frequencies_of_old_files_are_passed_over(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors")
    load_model(read_source(folder))


def damage(weights, kind):
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del weights[name]
    elif kind == "unexpected":
        weights["model.layers.1.adapter.weight"] = torch.ones(2)
    elif kind == "of another size":
        weights[name] = weights[name][1:].clone()
    elif kind == "quantised":
        weights[name] = weights[name].to(torch.int8)
    return weights


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing: model.layers.1.mlp.up_proj.weight\)"),
        ("unexpected", r"unexpected: model.layers.1.adapter.weight\)"),
        ("of another size", r"up_proj.weight \[19, 24\] where \[20, 24\] fits"),
        ("quantised", "as I8 in .*model.safetensors, expected floating-point"),
    ],
)
def test_what_does_not_fit_is_named(folder, kind, message):
    weights = damage(load_file(folder / "model.safetensors"), kind)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(read_source(folder))


def test_files_that_are_not_whole(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match="truncated or not a weight file"):
        WeightFiles(folder)
    file.unlink()
    with pytest.raises(UserError, match="found no weights in"):
        WeightFiles(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"found no model-00001-of-00002.safetensors in"):
        WeightFiles(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', "version https://git"]
)
def test_an_index_that_is_none_is_named(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="is not an index of weight files"):
        WeightFiles(folder)


def test_weights_saved_by_old_versions_of_torch_are_read(folder):
    expected = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(expected, file, _use_new_zipfile_serialization=False)
    weights = WeightFiles(folder)
    assert weights.stored.keys() == expected.keys()
    assert all(torch.equal(weights.read(name), expected[name]) for name in expected)


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.ones(2)}}, [1], torch.ones(2)])
def test_a_file_of_more_than_tensors_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="expected tensors by name and nothing else"):
        WeightFiles(folder)


def test_another_attention_gives_the_same_logits_and_an_unknown_one_is_refused(tiny_model):
    source = read_source(tiny_model)
    tokens = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(0))
    sdpa, eager = (load_model(source, attention=name).eval() for name in ("sdpa", "eager"))
    assert eager.config._attn_implementation == "eager"
    with torch.no_grad():
        torch.testing.assert_close(eager(tokens).logits, sdpa(tokens).logits)
    for name in ("nonsense", "flash_attention_2"):
        with pytest.raises(UserError, match=f"this model with model.attention={name} "):
            load_model(source, attention=name)


OLMO3 = [variant for variant in [*variants(), *extras()] if variant.family == "olmo3"]


@pytest.mark.parametrize("variant", OLMO3, ids=str)
def test_all_layers_of_an_olmo3_keep_the_base_of_a_config(variant, tmp_path):
    """From the older form alone, Transformers 5 would give sliding layers the default base."""
    base = 1234.0
    fields = complete_fields(variant.stock_config()) | {"rope_theta": base}
    write_config(stock_config(fields), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {one["rope_theta"] for one in written["rope_parameters"].values()} == {base}
    loaded = AutoConfig.from_pretrained(tmp_path)
    for found in (written, read_config(tmp_path), complete_fields(loaded)):
        assert found["rope_theta"] == base
        assert found.get("rope_scaling") == fields["rope_scaling"]


def test_a_longrope_has_the_keys_that_transformers_4_takes(tmp_path):
    (variant,) = (variant for variant in extras() if variant.name == "phi3-longrope")
    write_config(stock_config(complete_fields(variant.stock_config())), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for found in (written, read_config(tmp_path)):
        assert found["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
        assert found["original_max_position_embeddings"] == 8
