"""Every shipped recipe loads, and opens with the command that runs it."""

from pathlib import Path

import pytest

from llmshearing.errors import UserError
from llmshearing.preparation import recipe as recipes

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "yamls" / "data").glob("*.yaml"))
PLACES = ["source=a", "output=b", "tokenizer=c"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# python data_prep/prepare.py yamls/data/{path.name} ")
    given = first.split(path.name)[1].split()
    recipe = recipes.load(path, given)
    assert recipe.domains
    assert recipe.splits


def test_budgets_are_shared_out_by_weight():
    recipe = recipes.load(ROOT / "yamls" / "data" / "redpajama-v1.yaml", PLACES)
    asked = {
        domain: recipes.domain_tokens(recipe, domain, recipe.splits["continue"])
        for domain in recipe.domains
    }
    assert sum(asked.values()) == 52_000_000_000
    assert asked["cc"] == 34_840_000_000
    held = recipe.splits["eval"]
    assert {recipes.domain_tokens(recipe, domain, held) for domain in asked} == {2_000_000}


def test_what_is_missing_is_asked_for():
    with pytest.raises(UserError, match=r"`source` is missing.*`tokenizer` is missing"):
        recipes.load(ROOT / "yamls" / "data" / "redpajama-v1.yaml", ["output=x"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("2M", 2_000_000), ("0.42B", 420_000_000), ("1_000", 1000), (7, 7), ("1e6", 1_000_000)],
)
def test_quantities(text, value):
    assert recipes.quantity(text) == value


@pytest.mark.parametrize("text", ["", "many", "-1", "3 apples", None])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="expected a number"):
        recipes.quantity(text)


def test_sizes():
    assert recipes.byte_size("64MiB") == 64 << 20
    assert recipes.byte_size(100) == 100


def test_a_file_that_is_no_yaml_is_told(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: [1\nb: }")
    with pytest.raises(UserError, match="not valid YAML"):
        recipes.load(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="holds no mapping"):
        recipes.load(path)
    with pytest.raises(UserError, match="found no file"):
        recipes.load(tmp_path / "nothing.yaml")
