"""Every shipped recipe loads, and opens with the command that runs it."""

from pathlib import Path

import pytest

from llmshearing.errors import UserError
from llmshearing.preparation import recipe as recipes
from llmshearing.typed_yaml import load

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "yamls" / "data").glob("*.yaml"))
PLACES = ["source=a", "output=b", "tokenizer=c"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    first = path.read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith(f"# python data_prep/prepare.py yamls/data/{path.name} ")
    given = first.split(path.name)[1].split()
    recipe = load(recipes.PreparationRecipe, path, given)
    assert recipe.domains
    assert recipe.splits


def test_budgets_are_divided_by_weight():
    recipe = load(recipes.PreparationRecipe, ROOT / "yamls" / "data" / "redpajama-v1.yaml", PLACES)
    asked = {
        domain: recipe.tokens_of(domain, recipe.splits["continue"]) for domain in recipe.domains
    }
    assert sum(asked.values()) == 52_000_000_000
    assert asked["cc"] == 34_840_000_000
    held = recipe.splits["eval"]
    assert {recipe.tokens_of(domain, held) for domain in asked} == {2_000_000}


def test_missing_keys_are_reported():
    with pytest.raises(UserError, match=r"source: not given(.|\n)*tokenizer: not given"):
        load(recipes.PreparationRecipe, ROOT / "yamls" / "data" / "redpajama-v1.yaml", ["output=x"])


def test_all_errors_are_reported_at_once():
    changes = ["seed=-1", "domains.cc.files=3", "domains.cc.wheight=3", "splits.prune.share=2"]
    changes += ["splits.eval.tokens_per_domain=3 apples", "unit_bytes=[]"]
    with pytest.raises(UserError, match="has 6 errors") as error:
        load(
            recipes.PreparationRecipe,
            ROOT / "yamls" / "data" / "redpajama-v1.yaml",
            [*PLACES, *changes],
        )
    assert all(change.partition("=")[0] in str(error.value) for change in changes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["domains.cc.text_field=a", "domains.cc.messages_field=b"], "expected one"),
        (["domains.b d.weight=3"], "domains.b d: expected a name"),
        (["domains.x.files=x"], "splits.prune.tokens: expected a weight for x"),
        (["splits.prune.share=1"], "splits.prune: found share, tokens, expected one of"),
        (["splits.prune={}"], "splits.prune: found nothing"),
        (["unit_bytes=2GiB"], "unit_bytes: found 2GiB, expected less than 2GiB"),
    ],
)
def test_keys_that_do_not_fit_each_other(changes, error):
    with pytest.raises(UserError, match=error):
        load(
            recipes.PreparationRecipe,
            ROOT / "yamls" / "data" / "redpajama-v1.yaml",
            [*PLACES, *changes],
        )


def test_a_pattern_is_a_list_of_one():
    path = ROOT / "yamls" / "data" / "redpajama-v1.yaml"
    changes = ["domains.cc.files=a*", "domains.web.eval_files=[b, c]", "domains.web.weight=1"]
    domains = load(recipes.PreparationRecipe, path, [*PLACES, *changes]).domains
    assert domains["cc"].files == ["a*"]
    assert domains["web"].eval_files == ["b", "c"]


def test_the_schema_describes_every_key():
    schema = recipes.PreparationRecipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert all(entry.get("description") for entry in part["properties"].values())


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: [1\nb: }")
    with pytest.raises(UserError, match="not valid YAML"):
        load(recipes.PreparationRecipe, path)
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="holds no mapping"):
        load(recipes.PreparationRecipe, path)
    with pytest.raises(UserError, match="found no recipe"):
        load(recipes.PreparationRecipe, tmp_path / "nothing.yaml")
