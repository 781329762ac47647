"""A search on the tiny model, whose importance pass and scores take a second."""

import pytest

from llmshearing.architecture.target import TargetSettings
from llmshearing.search.search import SearchSettings, search

TARGET = TargetSettings(parameters="20K", multiple_of={"hidden": 8, "intermediate": 8})


@pytest.fixture(scope="session")
def target():
    return TARGET


@pytest.fixture(scope="session")
def settings():
    return SearchSettings(candidates=6, values_per_axis=4, rows=2, importance_rows=8, batch_size=4)


@pytest.fixture(scope="session")
def found(tiny_model, tiny_tree, settings, tmp_path_factory):
    """A finished search, and its directory."""
    out = tmp_path_factory.mktemp("search") / "out"
    return search(tiny_model, tiny_tree, TARGET, out, settings), out
