"""`launch/gradual.sh`: several cuts, one learning-rate schedule, a last stage on other rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing.checkpoints.manifest import RunManifest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # eleven programs in sequence
def test_gradual_pruning_in_one_command(tiny_model, tiny_tree, tmp_path):
    out, args = tmp_path / "out", "run.eval_interval=4ba data.global_batch=4 data.microbatch=4"
    environment = os.environ | {
        "ARGS": args,
        "BIN": str(Path(sys.executable).parent),
        "PYTHON": sys.executable,
        "SHORT": "3",
        "LONG": "6",
        "ROWS": "16",
        "LONGER": str(tiny_tree),
        "LONGER_STEPS": "2",
    }
    target = ["hidden=16", "heads=2", "intermediate=24"]
    command = [str(ROOT / "launch" / "gradual.sh"), str(tiny_model), str(tiny_tree), str(out)]
    command += target

    def run():
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=1800
        )

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = []
    for stage in ("1/cut", "1/model", "2/cut", "2/model", "longer/model"):
        shape = json.loads((out / stage / "llmshearing.json").read_text())["shape"]
        sizes.append((shape["hidden"], shape["layers"], shape["heads"], shape["intermediate"]))
    assert sizes == [*[(24, 3, 3, 32)] * 2, *[(16, 3, 2, 24)] * 3]
    parts = []
    for stage in ("1", "2", "longer"):
        recipe = RunManifest.read(out / stage / "run" / "manifest.json").recipe
        schedule = recipe["optimizer"]
        parts.append((schedule["schedule_from"], recipe["run"]["duration"]))
        assert schedule["schedule_length"] == "11ba"
    assert parts == [(None, "3ba"), ("3ba", "6ba"), ("9ba", "2ba")]
    again = run()
    assert again.returncode == 0
    assert "$" not in again.stderr  # finished steps are kept
