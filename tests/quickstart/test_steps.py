"""The commands of the quickstart, and the recipes behind them."""

from pathlib import Path

import pytest

from llmshearing.config import load_recipe
from llmshearing.quantities import steps as steps_of
from llmshearing.quickstart.gather import SOURCE
from llmshearing.quickstart.results import RUNS
from llmshearing.quickstart.steps import RECIPES, steps

ROOT = Path(__file__).parents[2]


def recipe_of(step):
    words = step.command[step.command.index("llmshearing.train") + 1 :]
    return load_recipe(words[0], words[1:])


@pytest.fixture(scope="module")
def recipes():
    return {step.name: recipe_of(step) for step in steps(Path("out")) if step.name in RUNS}


def test_the_control_sees_as_many_tokens_as_the_sheared_model(recipes):
    rows = {
        name: steps_of(recipe.run.duration) * recipe.data.global_batch
        for name, recipe in recipes.items()
    }
    assert rows["scratch"] == rows["prune"] + rows["continue"]


def test_the_control_has_the_shape_of_the_pruned_model(recipes):
    assert recipes["prune"].model.path == "out/models/source"
    assert recipes["continue"].model.path == "out/models/pruned"
    assert recipes["scratch"].model.path == "out/models/pruned"


def test_only_pruning_has_a_target_and_it_is_half_the_source(recipes):
    assert [name for name, recipe in recipes.items() if recipe.prunes] == ["prune"]
    target = recipes["prune"].target
    assert 2 * target.hidden == SOURCE.hidden_size
    assert 2 * target.heads == SOURCE.num_attention_heads
    assert 2 * target.intermediate == SOURCE.intermediate_size
    assert target.layers == SOURCE.num_hidden_layers


def test_only_the_source_and_the_control_start_from_random_weights(recipes):
    kinds = {name: recipe.model.initialize for name, recipe in recipes.items()}
    assert kinds == {
        "source": "random",
        "prune": "pretrained",
        "continue": "pretrained",
        "scratch": "random",
    }


def test_each_step_takes_what_an_earlier_one_made():
    made = {"out"}
    for step in steps(Path("out")):
        words = {word.split("=")[-1] for word in step.command}
        needed = {word for word in words if word.startswith("out")} - {str(step.output)}
        assert needed <= made, step.name
        made.add(str(step.output))
        if step.name == "gather":
            made.add("out/source-config")
        if step.name == "prepare":
            made.add("out/data/eval")


def test_a_directory_with_spaces_stays_one_word():
    for step in steps(Path("my demo")):
        assert not {"my", "demo"} & set(step.command)


def test_extra_words_are_for_one_step():
    found = {step.name: step.command for step in steps(Path("out"), {"prune": ["a=b"]})}
    assert found["prune"][-1] == "a=b"
    assert "a=b" not in found["source"]


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_opens_with_its_command(file):
    first = file.read_text().splitlines()[1]
    assert f"yamls/quickstart/{file.name}" in first
    assert first.startswith(("# composer -n 2 -m llmshearing.train", "# python data_prep/"))


def test_rows_fit_the_source():
    text = (RECIPES / "data.yaml").read_text()
    assert f"sequence_length: {SOURCE.max_position_embeddings}\n" in text
