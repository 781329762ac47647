"""Text in files and overrides stays as written, and no value is read as another type."""

import pytest

from llmshearing.config import load_recipe, parse_recipe
from llmshearing.errors import UserError
from llmshearing.preparation import recipe as preparation
from llmshearing.typed_yaml import load

BASE = """
run: {directory: here, duration: 10ba}
model: {path: m}
data: {root: d, split: prune, global_batch: 2, microbatch: 1}
optimizer: {learning_rate: 0.1}
"""
LITERAL = [
    "2026_01_15", "exp #7/prune", "0012", "2026-01-15", "null", "no", "~x", "1e3", "0o17", "0x1F",
    "12:30", "a ", " a", "a=b", "'a'", '"a"', "{a: b}", "[a]", "a: b", "- a", "true", "1_000",
    "!!int 3", "&a b", "*a", "run$\\frac$", "$HOME", "%x", "a\\b", "é", "@x", "`x`", "?", "",
]  # fmt: skip


@pytest.fixture
def recipe_text(tmp_path):
    def write(text=BASE):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("text", [text for text in LITERAL if text])
def test_an_override_of_text_is_taken_literally(recipe_text, text):
    assert load_recipe(recipe_text(), [f"run.directory={text}"]).run.directory == text
    assert load_recipe(recipe_text(), [f"run.wandb={text}"]).run.wandb == text


def test_an_empty_override_clears_optional_text(recipe_text):
    file = recipe_text(BASE + "mixture: {references: r.yaml}\n")
    assert load_recipe(file).mixture.references == "r.yaml"
    assert load_recipe(file, ["mixture.references="]).mixture.references is None


@pytest.mark.parametrize(
    "written", ["2026_01_15", "20260115", "true", "False", "1e3", "1.50", "-3", ".inf"]
)
def test_a_file_that_gives_no_text_where_text_is_due_is_refused(recipe_text, written):
    with pytest.raises(UserError, match=r"run.directory: .*expected text; put the value in quotes"):
        load_recipe(recipe_text(BASE.replace("here", written)))
    quoted = load_recipe(recipe_text(BASE.replace("here", f'"{written}"')))
    assert quoted.run.directory == written


@pytest.mark.parametrize(
    "written", ["0012", "2026-01-15", "0o17", "12:30", "0x1F", "1.2.3", "no", "on"]
)
def test_a_file_that_gives_text_of_digits_keeps_it(recipe_text, written):
    assert load_recipe(recipe_text(BASE.replace("here", written))).run.directory == written


@pytest.mark.parametrize("value", ["0012", "0o17", "0x1F", "1:30", "2026-01-15", "1.5", "no"])
def test_no_number_is_read_in_another_base(recipe_text, value):
    _, errors = parse_recipe(recipe_text(), [f"run.seed={value}"])
    assert len(errors) == 1
    assert errors[0].startswith("run.seed: ")


NAMES = ("no", "2023", "c4.en", "~", "null", "0012", "1e3", "2026-01-15", "off.eta")


@pytest.mark.parametrize("name", NAMES)
def test_names_in_mappings_are_text(recipe_text, name):
    inline = load_recipe(recipe_text(), [f"mixture.weights={{{name}: 0.5, b: 0.5}}"])
    assert inline.mixture.weights == {name: 0.5, "b": 0.5}
    single = load_recipe(recipe_text(), [f"mixture.weights.{name}=1"])
    assert single.mixture.weights == {name: 1.0}
    own = load_recipe(recipe_text(), [f"mixture.domains.{name}.eta=2"])
    assert own.mixture.model_dump()["domains"] == {name: {"eta": 2}}
    file = recipe_text(BASE + f"mixture:\n  weights:\n    {name}: 1.0\n")
    assert load_recipe(file, ["run.seed=3"]).mixture.weights == {name: 1.0}


def test_a_preparation_takes_text_literally(tiny_data_recipe):
    given = ["output=2026_01_15", "text_field=no", "domains.c4.en={weight: 1}"]
    loaded = load(
        preparation.PreparationRecipe,
        tiny_data_recipe,
        [*given, "domains.prose.where={dump: 2023, no: no}"],
    )
    assert (loaded.output, loaded.text_field) == ("2026_01_15", "no")
    assert loaded.domains["prose"].where == {"dump": 2023, "no": "no"}
    assert loaded.domains["c4.en"].weight == 1


def test_paths_may_begin_at_home(recipe_text, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    keys = ("run.directory", "model.path", "data.root", "mixture.references", "pruning.importance")
    recipe = load_recipe(recipe_text(), [f"{key}=~/x" for key in keys])
    for key in keys:
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == "/home/someone/x"


RULES = {
    "evaluation: found tasks with parallelism fsdp1": [
        "evaluation.tasks=[piqa]",
        "parallelism=fsdp1",
    ],
    "shard_ranks: found with parallelism ddp": ["shard_ranks=2", "parallelism=ddp"],
    "data.workers: found 3 with mixture.prefetch 2": ["data.workers=3", "mixture.prefetch=2"],
    "run.keep_checkpoints: found 0": ["run.keep_checkpoints=0"],
}


@pytest.mark.parametrize("message", RULES)
def test_values_that_exclude_each_other_are_refused(recipe_text, message):
    _, errors = parse_recipe(recipe_text(), RULES[message])
    assert len(errors) == 1
    assert errors[0].startswith(message)
