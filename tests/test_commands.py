"""Run the documents' commands as written, on the real small model and text.

`MODEL` and `TEXT` are provided, and text and training are shortened; nothing else changes.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, blocks, commands

SHORTER = (
    "run.duration=12ba run.eval_interval=12ba run.checkpoint_interval=12ba run.log_interval=1ba "
    "pruning.warmup=4ba pruning.freeze=8ba data.global_batch=2 data.microbatch=2 data.eval_rows=2"
).split()
LOSSES = """models:
- {parameters: 7e9, losses: {cc: 1.75}}
- {parameters: 13e9, losses: {cc: 1.67}}
- {parameters: 70e9, losses: {cc: 1.46}}
"""


def marked(document):
    return [block for block in blocks(document) if "tests/test_commands.py" in block.mark]


@pytest.fixture
def place(tmp_path, shared):
    """A folder like a reader's clone: the project, an environment, a model and text."""
    for name in ("yamls", "data_prep", "launch", "llmshearing"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "MODEL").symlink_to(shared / "models/tiny-llama")
    for file in (shared / "data/redpajama-sample").glob("*/*.jsonl"):
        shorten(file, tmp_path / "TEXT" / file.parent.name / file.name)
    (tmp_path / "LOSSES.yaml").write_text(LOSSES)
    return tmp_path


def shorten(file, to):
    """Copy the first documents of a file, each shortened."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with file.open() as lines, to.open("w") as out:
        for line in itertools.islice(lines, 6):
            document = json.loads(line)
            out.write(json.dumps({"text": document["text"][:3000]}) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if marked(path)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_of_the_documents(document, place):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    for block in marked(document):
        for words in commands(block.text):
            typed = [*words, *(SHORTER if Path(words[0]).name == "composer" else ())]
            done = subprocess.run(
                typed, cwd=place, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{' '.join(typed)}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
