"""The schemas with which editors complete and check recipes."""

import json
from pathlib import Path

import pytest
import yaml

from llmshearing.cli import main

YAMLS = Path(__file__).parents[2] / "yamls"
RECIPES = sorted(
    path for kind in ("prune", "continue", "data", "quickstart") for path in YAMLS.glob(f"{kind}/*")
)


@pytest.mark.parametrize("kind", ["training", "preparation"])
def test_the_shipped_schema_is_the_one_that_the_command_prints(kind, capsys):
    """To update it: `llmshearing schema KIND > yamls/schemas/KIND.json`."""
    assert main(["schema", kind]) == 0
    printed = capsys.readouterr().out
    assert (YAMLS / f"schemas/{kind}.json").read_text() == printed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipe_names_its_schema_and_has_only_keys_of_it(path):
    first = path.read_text().splitlines()[0]
    kind = "preparation" if "data" in (path.parent.name, path.stem) else "training"
    assert first == f"# yaml-language-server: $schema=../schemas/{kind}.json"
    schema = json.loads((YAMLS / f"schemas/{kind}.json").read_text())
    unknown = list(unknown_keys(yaml.safe_load(path.read_text()), schema, schema["$defs"]))
    assert unknown == []


def unknown_keys(value, schema, definitions):
    while "$ref" in schema or "anyOf" in schema:
        schema = schema["anyOf"][0] if "anyOf" in schema else schema
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if "properties" in schema and key not in schema["properties"]:
            yield key
            continue
        further = schema.get("additionalProperties")
        known = schema.get("properties", {}).get(key, further if further else {})
        yield from unknown_keys(inner, {} if known is True else known, definitions)


def test_every_key_is_described(capsys):
    for kind in ("training", "preparation"):
        schema = json.loads((YAMLS / f"schemas/{kind}.json").read_text())
        for name, section in schema["$defs"].items():
            for key, entry in section["properties"].items():
                assert "description" in entry, f"{name}.{key}"
                assert "\n" not in entry["description"]
    duration = json.loads((YAMLS / "schemas/training.json").read_text())["$defs"]["RunSettings"]
    assert duration["properties"]["duration"]["examples"] == ["3200ba"]
