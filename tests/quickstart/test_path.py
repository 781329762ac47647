"""The whole path, made short: every command for real."""

import json
import subprocess
import sys
import time

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing import files
from llmshearing.errors import UserError
from llmshearing.files import lock_directory
from llmshearing.quickstart import run
from llmshearing.quickstart.stages import Settings

SHORT = Settings(
    characters_per_domain=400_000,
    prepare=("splits.eval.tokens_per_domain=2048",),
    training=("run.eval_interval=4ba", "run.checkpoint_interval=4ba", "mixture.prefetch=1"),
    steps={"source": 8, "prune": 8, "continue": 4, "scratch": 12},
)


@pytest.mark.slow
def test_the_whole_path_and_again(tmp_path, capsys):
    out = tmp_path / "out"
    run(out, settings=SHORT)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tokens"]["scratch"] == (
        summary["tokens"]["prune"] + summary["tokens"]["continue"]
    )
    assert 0 < summary["peak_memory_gb"] < 4
    sheared = AutoModelForCausalLM.from_pretrained(out / "models/sheared")
    assert summary["sheared_parameters"] == sheared.num_parameters()
    assert summary["sheared_parameters"] == summary["scratch_parameters"]
    assert AutoTokenizer.from_pretrained(out / "models/sheared").encode("def") != []
    for name in ("source", "pruned", "sheared", "scratch"):
        assert 0 < summary[f"{name}_loss"] < 10
    assert "<svg" in (out / "report.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.safetensors")}
    capsys.readouterr()
    run(out, settings=SHORT)
    assert "$ composer" not in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before} == before

    given = tmp_path / "given"
    run(given, model=out / "models/source", settings=SHORT)
    again = json.loads((given / "summary.json").read_text())
    assert again["source_loss"] > 0
    assert again["sheared_parameters"] == summary["sheared_parameters"]
    assert "source" not in again["tokens"]


def test_a_model_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        run(tmp_path / "out", model=tmp_path)
    assert not (tmp_path / "out").exists()


def test_one_quickstart_per_directory_and_none_of_its_processes_outlives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.1)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "llmshearing.cli", "quickstart", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        quickstart, deadline = psutil.Process(first.pid), time.monotonic() + 60
        # The guard and the first stage.
        while len(quickstart.children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = quickstart.children(recursive=True)
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            run(out)
        first.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 2
    assert not alive
    with lock_directory(out):
        pass
