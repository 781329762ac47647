"""API pages build as in `make docs`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_api_pages_build_without_a_warning(tmp_path):
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    recipe = re.search(r"^docs:.*\n\t(.+)$", makefile, re.MULTILINE)[1]
    setting, program, *words = shlex.split(recipe)
    assert program == "$(VENV)/bin/python"
    words[words.index("build/docs")] = str(tmp_path / "docs")
    name, value = setting.split("=")
    environment = os.environ | {name: value, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    page = (tmp_path / "docs/llmshearing/pruning/constraint.html").read_text()
    assert "each layer of a per-layer axis has its own pair" in page
    missing = [
        path
        for path in (ROOT / "llmshearing").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
        and not (tmp_path / "docs" / path.relative_to(ROOT)).with_suffix(".html").is_file()
    ]
    assert not missing
