"""Killed without warning and started again, a run sees the samples that it would have seen."""

import json
import multiprocessing
import random
import shutil
import socket
import time
from pathlib import Path

import psutil
import pytest
import recording
import torch
import yaml
from recording import seen

STEPS = 60
KILLS = 20
DEADLINE_SECONDS = 600  # a machine may be busy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.world_size(2),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(params=["prune", "continue"])
def recipe(recipe_file, tmp_path, request):
    """Dynamic batch loading with two workers, a checkpoint at every step, two ranks."""
    references = tmp_path / "references.yaml"
    references.write_text(yaml.safe_dump({"losses": {"prose": 4.0, "code": 4.9, "letters": 3.0}}))
    given = json.loads(recipe_file.read_text())
    given["run"] |= {
        "duration": f"{STEPS}ba",
        "eval_interval": "5ba",
        "checkpoint_interval": "1ba",
        "log_interval": "1ba",
    }
    given["data"] |= {"split": request.param, "workers": 2, "eval_rows": 4}
    given["loading"] = {
        "policy": "paper",
        "references": str(references),
        "update_interval": "5ba",
        "ceiling": 0.6,
    }
    if request.param == "continue":
        del given["target"]
    recipe_file.write_text(json.dumps(given))
    return recipe_file


@pytest.fixture
def start(recipe, monkeypatch):
    """Start the ranks of a run, each a process forked from this one, which saves the imports."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    started = []

    def run(ranks, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [str(recipe), f"run.directory={directory}"]
        log = f"{directory}.log"
        processes = [
            context.Process(target=recording.run_rank, args=(rank, ranks, port, log, arguments))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        started.extend(processes)
        return processes

    yield run
    for process in started:
        process.kill()
        process.join()


def finish(processes, directory):
    for process in processes:
        process.join(timeout=DEADLINE_SECONDS)
    assert [process.exitcode for process in processes] == [0] * len(processes), log_of(directory)


def log_of(directory):
    return Path(f"{directory}.log").read_text()[-3000:]


def kill(processes):
    """SIGKILL for ranks and their workers, at once."""
    family = [psutil.Process(process.pid) for process in processes]
    family += [child for member in family for child in member.children(recursive=True)]
    for member in family:
        member.suspend()  # so that none can react to another's end
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=10)
    for process in processes:
        process.join()


def progress(directory):
    """The last step that rank 0 began."""
    path = directory / "seen-0.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else -1


def test_killed_at_any_step_nothing_is_lost_or_repeated(start, tmp_path):
    whole = tmp_path / "whole"
    finish(start(2, whole), whole)
    expected = seen(whole)
    assert sorted(expected) == list(range(STEPS))

    draw = random.Random(20231010)
    steps = sorted(draw.sample(range(1, STEPS - 1), KILLS))
    killed, halfway = tmp_path / "killed", steps[KILLS // 2]
    for step in steps:
        processes, begun = start(2, killed), time.monotonic()
        while progress(killed) < step:
            assert all(process.is_alive() for process in processes), log_of(killed)
            assert time.monotonic() - begun < DEADLINE_SECONDS, log_of(killed)
            time.sleep(0.005)
        time.sleep(draw.random() * 0.3)  # anywhere within the step or its checkpoint
        kill(processes)
        if step == halfway:
            shutil.copytree(killed, tmp_path / "one")
    finish(start(2, killed), killed)
    assert seen(killed) == expected

    # a checkpoint of two ranks goes on with one
    alone = tmp_path / "one"
    for path in alone.glob("seen-*.jsonl"):
        path.unlink()
    finish(start(1, alone), alone)
    found = seen(alone)
    assert 0 < min(found) <= halfway + 2
    assert found == {step: rows for step, rows in expected.items() if step >= min(found)}
