"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real text, a tokenizer and a small trained model."""
    folder = Path(os.environ.get("LLMSHEARING_SHARED", "../shared"))
    if not folder.is_absolute():
        folder = Path(__file__).parents[1] / folder
    if not folder.is_dir():
        pytest.skip(f"no real input at {folder}: set LLMSHEARING_SHARED to a folder that holds it")
    return folder
