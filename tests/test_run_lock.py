"""One run per directory, and no process of a run outlives the one that started it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from runs import log_file, start_ranks

from llmshearing import files, train
from llmshearing.errors import USER_ERROR_STATUS

DEADLINE_SECONDS = 120  # a machine may be busy


@pytest.fixture
def endless(recipe_file, tmp_path):
    """A real run of one process that has done some steps, and its recipe."""
    recipe = json.loads(recipe_file.read_text())
    recipe["run"] |= {"eval_interval": "100ba", "checkpoint_interval": "2ba"}
    recipe["data"] |= {"eval_rows": 1}
    recipe_file.write_text(json.dumps(recipe))
    arguments = [str(recipe_file), "run.duration=100000ba", "data.workers=1"]
    (process,) = start_ranks(1, tmp_path / "logs", arguments)
    begun = time.monotonic()
    while len(steps_of(tmp_path)) < 5:
        assert process.is_alive(), log_file(tmp_path / "logs", 0).read_text()
        assert time.monotonic() - begun < DEADLINE_SECONDS
        time.sleep(0.02)
    yield process, arguments
    process.kill()
    process.join()


def steps_of(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["batch"] for line in lines if line.endswith("\n")]


def test_a_second_run_of_a_directory_is_refused(endless, tmp_path, monkeypatch, capsys):
    process, arguments = endless
    run, untouched = tmp_path / "run", ("config.yaml", ".lock")
    before = {name: (run / name).read_bytes() for name in untouched}
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    assert train.main([*arguments, "run.duration=6ba"]) == USER_ERROR_STATUS
    assert f"{run} is in use by process {process.pid} on " in capsys.readouterr().err

    second = start_ranks(2, tmp_path / "second", arguments)
    for rank in second:
        rank.join(DEADLINE_SECONDS)
    assert [rank.exitcode for rank in second] == [USER_ERROR_STATUS] * 2
    assert "is in use by" in log_file(tmp_path / "second", 0).read_text()
    assert log_file(tmp_path / "second", 1).read_text() == ""

    assert process.is_alive()
    assert {name: (run / name).read_bytes() for name in untouched} == before
    assert (run / "log.txt").read_text().count("start: config took") == 1
    steps = steps_of(tmp_path)
    assert steps == list(range(1, len(steps) + 1))


def test_a_killed_run_ends_its_workers_and_frees_its_directory(endless, tmp_path):
    process, arguments = endless
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    process.join()
    psutil.wait_procs([worker], timeout=2)  # PyTorch's own check takes up to 5 seconds
    assert not worker.is_running()
    last = steps_of(tmp_path)[-1] + 2
    assert train.main([*arguments, f"run.duration={last}ba"]) == 0
    assert steps_of(tmp_path) == list(range(1, last + 1))


def test_a_rank_ends_with_its_launcher(tmp_path):
    launcher = (
        "import os, subprocess, sys, time\n"
        "environment = {**os.environ, 'LOCAL_RANK': '0'}\n"
        "command = [sys.executable, '-m', 'llmshearing.train', 'no-recipe.yaml']\n"
        "print(subprocess.Popen(command, env=environment).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert started.stdout is not None
    rank = psutil.Process(int(started.stdout.readline()))
    time.sleep(1)  # within its imports, which take several
    assert rank.is_running()
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    psutil.wait_procs([rank], timeout=2)
    assert not rank.is_running()
