"""What each command imports before it finds a mistake in its input, and how long that takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = "yamls/prune/llama2-7b-to-1.3b.yaml"
MODEL = "model.path=yamls/models/llama2-7b"
TRAINING = ("composer", "streaming", "torch", "transformers")
# In this order, in one process: modules that a command imports count for those after it as well.
NOT_IMPORTED = {
    "--help": (*TRAINING, "pydantic", "numpy", "omegaconf", "rich"),
    "export --help": (*TRAINING, "pydantic", "numpy", "omegaconf", "rich"),
    "recipes yamls": (*TRAINING, "pydantic", "omegaconf"),
    f"validate {RECIPE} {MODEL} data.root=nowhere data.workrs=1": TRAINING,
    "schema": TRAINING,
    "prepare nowhere": TRAINING,
    "describe nowhere": TRAINING,
    "report nowhere": TRAINING,
    "reference-loss fit nowhere --parameters 1e9": TRAINING,
    f"plan {RECIPE} {MODEL}": ("composer", "streaming"),
    "export nowhere out": ("composer", "streaming"),
    "prune-oneshot nowhere out --method random --target hidden=1": ("composer", "streaming"),
    "throughput nowhere": ("composer", "streaming"),
    "benchmark nowhere --tasks x": ("composer", "streaming"),
    "evaluate nowhere --data nowhere": ("composer",),
    "importance nowhere --data nowhere --out x": ("composer",),
    "reference-loss measure nowhere --data nowhere": ("composer",),
}
PROGRAM = """
import contextlib, io, json, sys
from llmshearing.cli import main
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(line.split())
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def imported():
    done = run("-c", PROGRAM, json.dumps(list(NOT_IMPORTED)))
    lists = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(NOT_IMPORTED, lists, strict=True))


@pytest.mark.parametrize("line", NOT_IMPORTED)
def test_a_command_imports_only_what_it_needs(imported, line):
    assert not set(NOT_IMPORTED[line]) & set(imported[line])


@pytest.mark.parametrize(
    ("line", "seconds"),
    [("--help", 0.3), (f"validate {RECIPE} {MODEL} data.root=nowhere data.workrs=1", 2.0)],
)
def test_a_command_starts_fast(line, seconds):
    before = os.times()
    run("-m", "llmshearing.cli", *line.split())
    after = os.times()
    used = after.children_user - before.children_user
    assert used + after.children_system - before.children_system < seconds
