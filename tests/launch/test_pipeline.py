"""`launch/pipeline.sh` on the real model and text: the README's five commands, a few steps each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # up to nine programs in sequence
@pytest.mark.parametrize("start", ["oneshot", "masks"])
def test_the_whole_method_in_one_command(shared, tmp_path, start):
    out = tmp_path / "out"
    short = "run.duration=4ba run.eval_interval=4ba data.eval_rows=2 data.global_batch=2"
    short += " data.microbatch=2"
    environment = os.environ | {
        # Freeze before the last step: undecided masks are not exported.
        "PRUNE_ARGS": f"{short} pruning.warmup=1ba pruning.freeze=0.5dur",
        "CONTINUE_ARGS": short,
        "ONESHOT_ARGS": short,
        "BIN": str(Path(sys.executable).parent),
        # Evaluation of all held-out rows takes minutes; its own tests cover it.
        "SKIP_EVALUATION": "1",
    }
    command = [
        str(ROOT / "launch" / "pipeline.sh"),
        *(["--start", start] if start != "oneshot" else []),
        str(shared / "models" / "tiny-llama"),
        str(shared / "data" / "redpajama-sample"),
        str(out),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("pruned" if start == "masks" else "continue/cut", "sheared"):
        manifest = json.loads((out / stage / "llmshearing.json").read_text())
        assert manifest["shape"] == {
            "hidden": 128,
            "layers": 6,
            "heads": 4,
            "kv_groups": 4,
            "head_dim": 32,
            "intermediate": 344,
            "vocabulary": 4096,
        }
    assert "<html" in (out / "report.html").read_text()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0
    assert "llmshearing.train" not in again.stderr  # finished steps are kept
