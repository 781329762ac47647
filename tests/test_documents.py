"""Commands in the documents exist as they are written, and recipes load."""

import re
import shlex
from pathlib import Path

import pytest

from llmshearing.cli import build_parser
from llmshearing.config import parse_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted(
    path
    for stage in ("prune", "continue", "quickstart")
    for path in (ROOT / "yamls" / stage).glob("*.yaml")
    if path.name != "data.yaml"
)


def commands():
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{document.name}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_command_is_one_that_exists(words):
    for word in words:
        if re.match(r"(yamls|data_prep|launch|docs)/", word):
            assert (ROOT / word).exists(), word
    program = Path(words[0]).name
    if program == "llmshearing":
        options = build_parser().parse_args(words[1:])
        assert callable(options.function)
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "composer":
        recipe, errors = parse_recipe(ROOT / words[words.index("-m") + 2], words[6:])
        assert not errors
        assert recipe is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_recipe_loads_and_opens_with_its_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# composer -n ")
    words = shlex.split(first[2:])
    assert ROOT / words[words.index("-m") + 2] == path
    recipe, errors = parse_recipe(path, words[words.index("-m") + 3 :])
    assert not errors
    assert recipe is not None


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
