"""`launch/gradual.sh`: several cuts, one learning-rate schedule, a last stage on other rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import metrics, series

from llmshearing.optimization import warmup_cosine

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # eleven programs in sequence
def test_gradual_pruning_in_one_command(tiny_model, tiny_tree, tmp_path):
    out, args = tmp_path / "out", "run.eval_interval=4ba data.global_batch=4 data.microbatch=4"
    environment = os.environ | {
        "ARGS": f"{args} run.log_interval=1ba",
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
    rate, rates = warmup_cosine(0, 11, 0.1), []
    for stage in ("1", "2", "longer"):
        lines = metrics(out / stage / "run")
        name = next(n for n in lines[0]["metrics"] if n.startswith("lr-"))
        rates += series(lines, name).values()
    assert rates == pytest.approx([2e-3 * rate(step) for step in range(11)])
    again = run()
    assert again.returncode == 0
    assert "$" not in again.stderr  # finished steps are kept
