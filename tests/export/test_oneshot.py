import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.export import oneshot
from llmshearing.huggingface.source import read_source

TARGET = ["hidden=16", "layers=2", "heads=2", "intermediate=24"]


def kept(directory):
    return json.loads((directory / "llmshearing.json").read_text())["kept"]


@pytest.mark.parametrize("method", oneshot.METHODS)
def test_the_target_shape_is_met_and_loads_as_it_is(tiny_model, tmp_path, capsys, method):
    out = tmp_path / "out"
    main(["prune-oneshot", str(tiny_model), str(out), "--method", method, "--target", *TARGET])
    assert "verified: logits within" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(out)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (2, 8, 24)
    assert (out / "tokenizer.model").is_file()


def test_activations_that_cancel_do_not_fail_the_verification(tiny_model, tmp_path):
    """Pretrained models have such outliers: in float32 their rounding alone exceeds the bound."""
    source = shutil.copytree(tiny_model, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp."
        up, gate, down = (weights[f"{mlp}{name}_proj.weight"] for name in ("up", "gate", "down"))
        up[1::2], gate[1::2] = up[::2], gate[::2]
        down[:, 1::2] = 1e-4 * down[:, 1::2] - down[:, ::2]
        up *= 1e4
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    main(["prune-oneshot", str(source), str(out), "--method", "random", "--target", "hidden=16"])
    assert json.loads((out / "llmshearing.json").read_text())["logits_difference"] < 1e-9


def test_the_units_of_highest_importance_stay_for_several_targets(tiny_model, tiny_tree, tmp_path):
    path = tmp_path / "scores.safetensors"
    scores = measure_importance(tiny_model, tiny_tree / "prune", rows=16, out=path)
    scores = {axis.value: score for axis, score in scores.items()}
    for size in (24, 12):
        out = tmp_path / str(size)
        main(["prune-oneshot", str(tiny_model), str(out), "--importance", str(path),
              "--target", f"intermediate={size}"])  # fmt: skip
        best = scores["intermediate"].topk(size, -1).indices.sort(-1).values
        assert kept(out) == {"intermediate": best.tolist()}


def test_random_units_follow_the_seed(tiny_model, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(["prune-oneshot", str(tiny_model), str(tmp_path / name), "--method", "random",
              "--seed", str(seed), "--target", "hidden=16"])  # fmt: skip
    assert kept(tmp_path / "a") == kept(tmp_path / "b") != kept(tmp_path / "c")


def test_weights_of_kept_units_are_the_sources_own(tiny_model, tmp_path):
    out = tmp_path / "out"
    main(
        ["prune-oneshot", str(tiny_model), str(out), "--method", "spaced", "--target", "hidden=16"]
    )
    units = kept(out)["hidden"]
    source = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    cut = AutoModelForCausalLM.from_pretrained(out).state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(cut[name], source[name][units])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "best", "--target", "hidden=16"],
            "expected one of magnitude, random, spaced",
        ),
        (["--method", "random", "--target", "hidden=64"], "the source has 32"),
        (["--method", "random", "--target", "width=16"], "unknown key"),
        (
            ["--method", "random", "--target", "parameters=9K", "hidden=16"],
            "found target.parameters, exp",
        ),
        (["--method", "random", "--target", "hidden"], "expected SIZE=N"),
        (["--target", "hidden=16"], "one of --importance FILE and --method NAME"),
        (["--importance", "none", "--target", "hidden=16"], "no importance scores"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(
    tiny_model, tmp_path, capsys, arguments, message
):
    out = tmp_path / "out"
    assert main(["prune-oneshot", str(tiny_model), str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_weights_that_do_not_fit_the_config_are_named(tiny_model, tmp_path, capsys):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    given = [str(broken), str(tmp_path / "out"), "--method", "magnitude", "--target", *TARGET]
    assert main(["prune-oneshot", *given]) == 2
    assert "do not fit its config (missing: model.layers.3." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scores_of_another_shape_are_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no importance scores"):
        oneshot.from_file(tmp_path / "none")(read_source(tiny_model).table, {}, lambda _: None)
