"""The commands of the path, and the recipes behind them."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing.architecture.shape import Shape
from llmshearing.config import load_recipe, steps
from llmshearing.quickstart.path import half
from llmshearing.quickstart.stages import RECIPES, Layout, Settings, stages
from llmshearing.quickstart.text import SEQUENCE_LENGTH, SOURCE

PROJECT = Path(__file__).parents[2]


def recipe_of(stage):
    words = stage.command[stage.command.index("llmshearing.train") + 1 :]
    return load_recipe(PROJECT / words[0], words[1:])


def path_of(layout, **settings):
    found = stages(layout, Settings(**settings), lambda: None, [])
    return {stage.name: stage for stage in found}


@pytest.fixture
def recipes():
    path = path_of(Layout(Path("out")))
    return {name: recipe_of(path[name]) for name in ("source", "prune", "continue", "scratch")}


def test_the_control_sees_as_many_tokens_as_the_sheared_model(recipes):
    rows = {
        name: steps(recipe.run.duration) * recipe.data.global_batch
        for name, recipe in recipes.items()
    }
    assert rows["scratch"] == rows["prune"] + rows["continue"]


def test_the_control_has_the_shape_of_the_pruned_model(recipes):
    assert recipes["prune"].model.path == "out/models/source"
    assert recipes["continue"].model.path == "out/models/pruned"
    assert recipes["scratch"].model.path == "out/models/pruned"


def test_only_the_pruning_stage_has_a_target_and_it_halves_the_source(recipes):
    assert [name for name, recipe in recipes.items() if recipe.prunes] == ["prune"]
    target = recipes["prune"].target
    assert 2 * target.hidden == SOURCE["hidden_size"]
    assert 2 * target.heads == SOURCE["num_attention_heads"]
    assert 2 * target.intermediate == SOURCE["intermediate_size"]
    assert target.layers == SOURCE["num_hidden_layers"]


def test_random_weights_only_where_they_belong(recipes):
    kinds = {name: recipe.model.initialize for name, recipe in recipes.items()}
    assert kinds == {
        "source": "random",
        "prune": "pretrained",
        "continue": "pretrained",
        "scratch": "random",
    }


def test_each_stage_takes_what_an_earlier_one_made():
    made = {"out/text", "out/tokenizer", "out/source-config", "out/references.yaml"}
    for stage in stages(Layout(Path("out")), Settings(), lambda: None, []):
        if stage.name == "text":
            continue
        words = [word.split("=")[-1] for word in stage.command]
        if stage.name == "prepare":
            made |= {"out/data", "out/data/eval"}
        outputs = {str(stage.makes), str(stage.run_directory)}
        needed = {word for word in words if word.startswith("out/")} - outputs
        assert needed <= made, stage.name
        made |= outputs


def test_a_given_model_is_not_trained():
    path = path_of(Layout(Path("out"), Path("/models/llama")))
    assert "source" not in path
    assert "export-source" not in path
    assert "tokenizer=/models/llama" in path["prepare"].command
    assert path["evaluate-source"].command[2] == "/models/llama"
    assert recipe_of(path["prune"]).model.path == "/models/llama"


def test_half_of_any_shape():
    multi_head = Shape(
        vocabulary=9, hidden=64, layers=3, heads=6, kv_groups=6, intermediate=100, head_dim=8
    )
    assert half(multi_head) == [
        "target.hidden=32",
        "target.layers=3",
        "target.heads=3",
        "target.intermediate=50",
    ]
    grouped = Shape(
        vocabulary=9, hidden=64, layers=3, heads=8, kv_groups=2, intermediate=100, head_dim=8
    )
    assert half(grouped)[2:] == [
        "target.heads=4",
        "target.intermediate=50",
        "target.kv_groups=1",
    ]


@pytest.mark.parametrize("file", sorted((PROJECT / RECIPES).glob("*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_opens_with_its_command(file):
    first = file.read_text().splitlines()[0]
    assert str(file.relative_to(PROJECT)) in first
    assert first.startswith(("# composer -n 2 -m llmshearing.train", "# python data_prep/"))


def test_rows_fit_the_source():
    text = (PROJECT / RECIPES / "data.yaml").read_text()
    assert f"sequence_length: {SEQUENCE_LENGTH}\n" in text


def test_this_process_stays_small():
    """What only looks on must not take a model library's memory."""
    code = "import sys, llmshearing.quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
