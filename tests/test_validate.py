"""`validate` checks what a run will read: damaged files and wrong values end in one message."""

import json
import re
import resource
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from llmshearing.architecture.families import read_config
from llmshearing.cli import main
from llmshearing.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4194304\n"
# Of a LLaMA config what is one of Mistral then.
MISTRAL = {"model_type": "mistral", "attention_bias": None, "mlp_bias": None} | {
    "pretraining_tp": None
}
INCOMPUTABLE = r"Transformers( [0-9.]+ refuses| cannot compute)"  # with the version or without
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the source model, with generation settings and a converted tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def refused(capsys, command, recipe, *overrides):
    """What a command says that ends with one message."""
    capsys.readouterr()
    assert main([*command.split(), str(recipe), *overrides]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def changed(config, values):
    """A config with other values; rotary settings in the older form alone, if they are given."""
    if {"rope_theta", "rope_scaling"} & set(values):
        config = {name: value for name, value in config.items() if name != "rope_parameters"}
    return config | values


def set_config(**values):
    def change(model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(changed(config, values)))

    return change


CONFIGS = {
    "text": ({"hidden_size": "32"}, "hidden_size='32', expected a whole number, 1 or more"),
    "null": ({"num_hidden_layers": None}, "num_hidden_layers=None, expected a whole number"),
    "negative": ({"intermediate_size": -48}, "intermediate_size=-48, expected a whole number"),
    "zero": ({"num_attention_heads": 0}, "num_attention_heads=0, expected a whole number"),
    "truth": ({"num_hidden_layers": True}, "num_hidden_layers=True, expected a whole number"),
    "fraction": ({"vocab_size": 128.0}, "vocab_size=128.0, expected a whole number, 1 or more"),
    "no groups": ({"num_key_value_heads": 0}, "num_key_value_heads=0, expected a whole number"),
    "text of groups": ({"num_key_value_heads": "4"}, "num_key_value_heads='4', expected a whole"),
    "head size": ({"head_dim": 0}, "head_dim=0, expected a whole number, 1 or more"),
    "positions": ({"max_position_embeddings": "64"}, "max_position_embeddings='64', expected a"),
    "heads and groups": ({"num_key_value_heads": 3}, "num_attention_heads=4 and num_key_value_hea"),
    "hidden and heads": ({"head_dim": None, "hidden_size": 33}, "hidden_size=33 and num_attention"),
    "pad": ({"pad_token_id": 128}, "pad_token_id=128, but the vocabulary has ids up to 127"),
    "pad above": ({"pad_token_id": 32000}, "pad_token_id=32000, but the vocabulary has ids up to"),
    "pad below": ({"pad_token_id": -2}, "pad_token_id=-2, expected a token id"),
    "pad text": ({"pad_token_id": "<pad>"}, "pad_token_id='<pad>', expected a token id"),
    "pad truth": ({"pad_token_id": True}, "pad_token_id=True, expected a token id"),
    "begin": ({"bos_token_id": 128}, "bos_token_id=128, but the vocabulary has ids up to 127"),
    "end": ({"eos_token_id": [2, 128]}, "eos_token_id=[2, 128], but the vocabulary has ids up to"),
    "end text": ({"eos_token_id": ["2"]}, "eos_token_id=['2'], expected a token id"),
    "tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no', expected true or false"),
    "bias": ({"attention_bias": 1}, "attention_bias=1, expected true or false"),
    "epsilon": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5', expected a number above 0"),
    "no epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps=0, expected a number above 0"),
    "theta": ({"rope_theta": "10000"}, "rope_theta='10000', expected a number above 0"),
    "Mistral with yarn": (
        MISTRAL | {"rope_scaling": YARN, "head_dim": None},
        "rope_scaling of type 'yarn' and no head_dim",
    ),
    "Mistral with dynamic": (
        MISTRAL | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": None},
        "rope_scaling of type 'dynamic' and no head_dim",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_value_in_the_config_is_named(tiny_model, tmp_path, case):
    values, message = CONFIGS[case]
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(changed(config, values)))
    with pytest.raises(UserError, match=f"^config.json has {re.escape(message)}"):
        read_config(tmp_path)


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_such_a_value_ends_a_command_with_one_message(recipe_file, model, capsys, command):
    set_config(hidden_size="32")(model)
    told = refused(capsys, command, recipe_file, f"model.path={model}")
    assert told.count("\n  - ") == 1
    assert "model.path: config.json has hidden_size='32'" in told


COMPUTED = {
    "no such activation": {"hidden_act": "gellu"},
    "text in rope": {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
    "labels": {"id2label": 3},
    "type": {"dtype": "float99"},
}


@pytest.mark.parametrize("case", COMPUTED)
def test_a_config_that_transformers_cannot_compute_is_refused(recipe_file, model, capsys, case):
    set_config(**COMPUTED[case])(model)
    told = refused(capsys, "validate", recipe_file, f"model.path={model}")
    assert re.search("  - model.path: .*" + INCOMPUTABLE, told)


@pytest.mark.parametrize("case", ["no such activation", "labels", "type"])
def test_a_plan_of_such_a_config_is_refused(recipe_file, model, capsys, case):
    set_config(**COMPUTED[case])(model)
    told = refused(capsys, "plan", recipe_file, f"model.path={model}")
    assert re.search(INCOMPUTABLE, told)


def test_a_head_size_that_transformers_cannot_rotate_is_refused(recipe_file, model, capsys):
    set_config(head_dim=7)(model)
    told = refused(capsys, "plan", recipe_file, f"model.path={model}")
    assert re.search(INCOMPUTABLE, told)


def test_an_unknown_attention_is_refused_and_one_that_needs_a_device_is_noted(recipe_file, capsys):
    told = refused(capsys, "validate", recipe_file, "model.attention=nonsense")
    assert "Transformers cannot compute this model with model.attention=nonsense" in told
    if not torch.cuda.is_available():
        assert main(["validate", str(recipe_file), "model.attention=flash_attention_2"]) == 0
        noted = "note: model.attention=flash_attention_2 cannot be checked here: "
        assert noted in capsys.readouterr().out


def write(name, content):
    return lambda model: (model / name).write_bytes(content.encode())


def cut(name, end=-10):
    def change(model):
        (model / name).write_bytes((model / name).read_bytes()[:end])

    return change


def pickled(change, **options):
    """Replace the weights by a PyTorch file of something made from them."""

    def damage(model):
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        torch.save(change(weights), model / "pytorch_model.bin", **options)

    return damage


def indexed(change):
    """Replace the weights by two files and their index, of which something is changed."""

    def damage(model):
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        owner = {name: names[number % 2] for number, name in enumerate(weights)}
        for file in names:
            save_file({n: w for n, w in weights.items() if owner[n] == file}, model / file)
        index = model / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": owner}))
        change(model, index)

    return damage


def then(*steps):
    return lambda model: [step(model) for step in steps]


OLD = {"_use_new_zipfile_serialization": False}
HEADER = (1 << 40).to_bytes(8, "little").decode("latin-1")
FILES = {
    "generation settings cut off": (
        write("generation_config.json", '{"bos_token_id": 1,'), "config.json is not valid JSON"
    ),
    "generation settings of text": (
        write("generation_config.json", '"a"'), "generation_config.json is not a JSON object"
    ),
    "generation settings pointer": (
        write("generation_config.json", POINTER), "generation_config.json is a pointer to a large"
    ),
    "generation settings empty": (write("generation_config.json", ""), "is not valid JSON"),
    "config pointer": (write("config.json", POINTER), "config.json is a pointer to a large file"),
    "index pointer": (
        indexed(lambda _, index: index.write_text(POINTER)), "index.json is a pointer to a large"
    ),
    "index cut off": (
        indexed(lambda _, index: index.write_text(index.read_text()[:200])),
        "is not an index of weight files",
    ),
    "index of absent files": (
        indexed(lambda model, _: (model / "model-00002-of-00002.safetensors").unlink()),
        "found no model-00002-of-00002.safetensors",
    ),
    "index without a tensor": (
        indexed(lambda _, index: index.write_text(
            json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))),
        "do not fit its config (missing: ",
    ),
    "part pointer": (
        indexed(lambda m, _: write("model-00002-of-00002.safetensors", POINTER)(m)),
        "model-00002-of-00002.safetensors is a pointer to a large file",
    ),
    "pointer": (write("model.safetensors", POINTER), "model.safetensors is a pointer to a large"),
    "empty": (write("model.safetensors", ""), "model.safetensors is truncated or not a weight"),
    "cut off": (cut("model.safetensors"), "model.safetensors is truncated or not a weight file"),
    "cut off in its header": (cut("model.safetensors", 100), "is truncated or not a weight file"),
    "header longer than the file": (
        write("model.safetensors", HEADER + "{}"), "is truncated or not a weight file"
    ),
    "web page": (write("model.safetensors", "<html>404</html>"), "is truncated or not a weight"),
    "other sizes": (set_config(intermediate_size=40), "do not fit its config (of another size"),
    "a layer too many": (set_config(num_hidden_layers=4), "do not fit its config (missing: model"),
    "old file cut off": (
        then(pickled(dict, **OLD), cut("pytorch_model.bin")), "pytorch_model.bin is truncated or"
    ),
    "new file cut off": (
        then(pickled(dict), cut("pytorch_model.bin")), "pytorch_model.bin is truncated or not a"
    ),
    "empty PyTorch file": (
        then(pickled(dict), write("pytorch_model.bin", "")), "pytorch_model.bin is truncated or"
    ),
    "PyTorch pointer": (
        then(pickled(dict), write("pytorch_model.bin", POINTER)), "bin is a pointer to a large"
    ),
    "nested": (pickled(lambda w: {"state_dict": w}), "expected tensors by name and nothing else"),
    "nested old file": (
        pickled(lambda w: {"state_dict": w}, **OLD), "expected tensors by name and nothing else"
    ),
    "quantised": (
        pickled(lambda w: {n: x.to(torch.int8) for n, x in w.items()}), "floating-point weights"
    ),
    "tokenizer pointer": (write("tokenizer.model", POINTER), "tokenizer.model is a pointer to a"),
    "tokenizer cut off": (cut("tokenizer.model", 500), "tokenizer.model is not a tokenizer"),
    "tokenizer empty": (write("tokenizer.model", ""), "tokenizer.model is not a tokenizer"),
    "fast tokenizer cut off": (
        write("tokenizer.json", '{"version": "1.0", "model": {'), "tokenizer.json is not valid JSON"
    ),
    "only tokenizer without a model": (
        then(lambda model: (model / "tokenizer.model").unlink(), write("tokenizer.json", "{}")),
        "tokenizer.json is not a tokenizer",
    ),
    "tokenizer settings cut off": (
        write("tokenizer_config.json", '{"a": '), "tokenizer_config.json is not valid JSON"
    ),
    "special tokens of a pointer": (
        write("special_tokens_map.json", POINTER), "special_tokens_map.json is a pointer to a"
    ),
    "template not text": (
        lambda model: (model / "chat_template.jinja").write_bytes(b"\xff\xfe{"),
        "chat_template.jinja is not text in UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_of_the_model_is_named(recipe_file, model, capsys, case):
    damage, message = FILES[case]
    damage(model)
    told = refused(capsys, "validate", recipe_file, f"model.path={model}")
    assert message in told
    assert told.count("\n  - ") == 1, told


WHOLE = {
    "an older file": pickled(dict, **OLD),
    "a newer file": pickled(dict),
    "an index": indexed(lambda *_: None),
    "no generation settings": lambda model: (model / "generation_config.json").unlink(),
    "a last token id": set_config(pad_token_id=127, bos_token_id=127, eos_token_id=[2, 127]),
    "no token ids": set_config(pad_token_id=-1, bos_token_id=None, eos_token_id=None),
    "Mistral with yarn and a head size": set_config(**MISTRAL, rope_scaling=YARN, head_dim=8),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_right_stays_accepted(recipe_file, model, case):
    WHOLE[case](model)
    assert main(["validate", str(recipe_file), f"model.path={model}"]) == 0


def test_a_random_start_needs_no_weights(recipe_file, model):
    (model / "model.safetensors").unlink()
    given = ["validate", str(recipe_file), f"model.path={model}"]
    assert main([*given, "target=null", "model.initialize=random"]) == 0
    assert main(given) == 2


def test_weights_are_not_read(recipe_file, model):
    """A file of 8.6 GB, all of it a hole: only its header is read."""
    config = json.loads((model / "config.json").read_text())
    set_config(vocab_size=1 << 25)(model)
    header, start = {}, 0
    for name, weight in load_file(model / "model.safetensors").items():
        vocabulary = weight.shape[0] == config["vocab_size"]
        shape = [1 << 25 if vocabulary else weight.shape[0], *weight.shape[1:]]
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["validate", str(recipe_file), f"model.path={model}"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_run_directory_in_place_of_a_model_is_told(recipe_file, finished_run, capsys):
    told = refused(capsys, "validate", recipe_file, f"model.path={finished_run}")
    assert f"found a run, not a model, in {finished_run}" in told
    assert "llmshearing export" in told


REFERENCES = {
    "null": ("losses: {prose: null, code: 2, letters: 3}", "losses.prose: found None, expected a"),
    "cut off": ("losses: {prose: 2.0, co", "is not valid YAML"),
    "pointer": (POINTER, "holds no mapping of keys"),
    "empty": ("", "holds no mapping of keys"),
    "text": ("losses: {prose: low, code: 2, letters: 3}", "losses.prose: found 'low', expected"),
    "no number": ("losses: {prose: .nan, code: 2, letters: 3}", "losses.prose: found nan"),
    "a list": ("losses: [1, 2, 3]", "losses: found [1, 2, 3]"),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_damaged_references_are_named(recipe_file, tmp_path, capsys, case):
    content, message = REFERENCES[case]
    (tmp_path / "losses.yaml").write_text(content)
    given = f"mixture.references={tmp_path / 'losses.yaml'}"
    assert message in refused(capsys, "validate", recipe_file, given)


MIXTURES = {
    "null": ("weights: {prose: null, code: 0.5, letters: 0.5}", "expected a number for each dom"),
    "pointer": (POINTER, "holds no mapping of keys"),
    "cut off": ("weights: {prose: 0.2, co", "is not valid YAML"),
    "no number": ("weights: {prose: .nan, code: 0.5, letters: 0.5}", "mixture"),
}


@pytest.mark.parametrize("case", MIXTURES)
def test_a_damaged_mixture_file_is_named(recipe_file, tmp_path, capsys, case):
    content, message = MIXTURES[case]
    (tmp_path / "mixture.yaml").write_text(content)
    given = f"mixture.start_from={tmp_path / 'mixture.yaml'}"
    assert message in refused(capsys, "validate", recipe_file, given)


@pytest.mark.parametrize("content", [POINTER, "", "{"])
def test_a_damaged_importance_file_is_named(recipe_file, tmp_path, capsys, content):
    (tmp_path / "scores.safetensors").write_text(content)
    given = f"pruning.importance={tmp_path / 'scores.safetensors'}"
    told = refused(capsys, "validate", recipe_file, given)
    assert "pruning.importance: " in told
    assert ("is a pointer to a large file" in told) == bool(content == POINTER)


TREES = {
    "cut off": (lambda text: text[:-200], "is not valid JSON"),
    "pointer": (lambda text: POINTER, "is a pointer to a large file"),
    "text of rows": (
        lambda text: text.replace('"rows": ', '"rows": "x", "r": '),
        "no whole manifest",
    ),
    "null length": (
        lambda text: text.replace('"sequence_length": 32', '"sequence_length": null'),
        "found no whole manifest of format 1 in",
    ),
    "no tokenizer": (
        lambda text: text.replace('"fingerprint"', '"print"'),
        "no whole manifest",
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_a_damaged_data_manifest_is_named(recipe_file, tiny_tree, tmp_path, capsys, case):
    change, message = TREES[case]
    tree = tmp_path / "tree"
    shutil.copytree(tiny_tree, tree)
    text = (tree / "manifest.json").read_text()
    (tree / "manifest.json").write_text(change(text))
    assert message in refused(capsys, "validate", recipe_file, f"data.root={tree}")


def resumable(run, tmp_path):
    """The recipe that a run was made with, for its directory."""
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    recipe["run"]["directory"] = str(run)
    recipe["run"]["duration"] = "4ba"
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_the_checkpoint_to_resume_from_is_checked(run, tmp_path, capsys):
    recipe = resumable(run, tmp_path)
    assert main(["validate", str(recipe)]) == 0
    assert "resumes from ba2.pt" in capsys.readouterr().out
    told = refused(capsys, "validate", recipe, "target.hidden=24")
    assert "ba2.pt belongs to another run (target hidden: found 16, expected 24)" in told
    cut("ba2.json")(run / "checkpoints")
    assert "ba2.json is not a whole manifest of a run" in refused(capsys, "validate", recipe)
    (run / "checkpoints/ba2.json").unlink()
    (run / "checkpoints/ba2.pt").unlink()


def test_a_checkpoint_that_is_cut_off_is_told(run, tmp_path, capsys):
    recipe = resumable(run, tmp_path)
    cut("ba2.pt")(run / "checkpoints")
    assert "so this is not a whole checkpoint" in refused(capsys, "validate", recipe)


def test_a_teacher_is_checked_as_the_model_is(recipe_file, model, capsys):
    cut("model.safetensors")(model)
    told = refused(capsys, "validate", recipe_file, f"distillation.teacher={model}")
    assert "distillation.teacher: " in told
    assert "model.safetensors is truncated or not a weight file" in told
