"""Commands, files, names and tests in the documents exist."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, blocks, commands

from llmshearing.cli import build_parser
from llmshearing.config import parse_recipe

RECIPES = sorted(
    path
    for stage in ("prune", "continue", "quickstart")
    for path in (ROOT / "yamls" / stage).glob("*.yaml")
    if path.name != "data.yaml"
)
PROGRAMS = ("llmshearing", "composer", "make", "python", "launch/")
TEST = r"tests/[\w/]+\.py(?:::\w+)?"


def is_name(words):
    """A verb alone names the command; it is not a call."""
    return words[0] == "llmshearing" and len(words) == 2


def all_commands():
    """Commands in code blocks, and those in running text with arguments."""
    for document in DOCUMENTS:
        for block in blocks(document):
            for words in commands(block.text):
                yield document, words
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for span in re.findall(r"`([^`\n]+)`", text):
            words = span.split(" > ")[0].split()
            if span.startswith(PROGRAMS) and len(words) > 1 and not is_name(words):
                yield document, words


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{document.name}: {' '.join(words)[:60]}")
        for document, words in all_commands()
    ],
)
def test_documented_command_exists(words):
    for word in words:
        if re.match(r"(yamls|data_prep|launch|benchmarks|tests)/", word):
            assert (ROOT / word).exists(), word
    program = Path(words[0]).name
    if program == "llmshearing":
        options = build_parser().parse_args(words[1:])
        assert callable(options.function)
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "composer" and "llmshearing.cli" in words:
        assert build_parser().parse_args(words[words.index("llmshearing.cli") + 1 :])
    elif program == "composer" and "-m" in words:
        at = words.index("-m")
        if words[at + 2] != "RECIPE.yaml":
            recipe, errors = parse_recipe(ROOT / words[at + 2], words[at + 3 :])
            assert not errors
            assert recipe is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_block_names_its_test_or_a_reason(document):
    for block in blocks(document):
        where = f"{document.name}, line {block.line}: {block.text.splitlines()[0]}"
        assert block.language == "bash", f"{where}: say ```bash"
        mark = re.fullmatch(r"<!-- (run|not run): (.+) -->", block.mark)
        assert mark, f"{where}: expected <!-- run: TEST --> or <!-- not run: WHY --> above"
        if mark[1] == "run":
            named = re.findall(TEST, mark[2])
            assert named, f"{where}: names no test"
            assert all(test_exists(test) for test in named), where


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_tests_and_names_in_a_document_exist(document):
    text = document.read_text()
    for address in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not address.startswith(("http", "mailto:")):
            assert (document.parent / address).exists(), address
    for test in re.findall(TEST, text):
        assert test_exists(test), test
    for path, name in re.findall(r"`(llmshearing/[\w/]+\.py):(\w+)`", text):
        assert name in names_in(ROOT / path), f"{path}:{name}"
    for path in re.findall(
        r"`((?:llmshearing|benchmarks|launch|yamls|data_prep)/[\w/.-]+\.\w+)`", text
    ):
        assert (ROOT / path).exists(), path


def test_each_row_of_the_troubleshooting_table_names_tests():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    table = text[text.index("| issue |") :].splitlines()[2:]
    rows = [line for line in table if line.startswith("|")]
    assert len(rows) == 17
    for row in rows:
        assert re.findall(TEST, row), row


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_recipe_loads_and_starts_with_its_command(path):
    first = path.read_text().splitlines()[1]
    assert first.startswith("# composer -n ")
    words = shlex.split(first[2:])
    assert ROOT / words[words.index("-m") + 2] == path
    recipe, errors = parse_recipe(path, words[words.index("-m") + 3 :])
    assert not errors
    assert recipe is not None


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pictures_in_the_documents_are_small():
    pictures = [*(ROOT / "docs").glob("*.png")]
    assert pictures
    assert all(path.stat().st_size < 300_000 for path in pictures)


def test_exists(test):
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and (not name or name in names_in(ROOT / path))


test_exists.__test__ = False


@cache
def names_in(path):
    tree = ast.parse(path.read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
