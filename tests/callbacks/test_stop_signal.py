"""A signalled run saves a checkpoint and stops; resumed, it is the uninterrupted run."""

import json
import os
import signal
import time

import psutil
import pytest
import torch
from runs import metrics, start_ranks

from llmshearing import train
from llmshearing.checkpoints.layout import step_of
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import STOPPED_STATUS

STEPS = 40
DEADLINE_SECONDS = 120

pytestmark = pytest.mark.world_size(2)


@pytest.fixture
def recipe(recipe_file):
    given = json.loads(recipe_file.read_text())
    given["run"] |= {
        "duration": f"{STEPS}ba",
        "eval_interval": f"{STEPS}ba",
        "checkpoint_interval": f"{STEPS}ba",
    }
    given["data"] |= {"workers": 1, "eval_rows": 4}
    recipe_file.write_text(json.dumps(given))
    return recipe_file


@pytest.fixture
def start(recipe, tmp_path):
    """Starts two ranks; the ones that are still running are killed at the end."""
    started = []

    def run(directory):
        processes = start_ranks(2, tmp_path / "logs", [str(recipe), f"run.directory={directory}"])
        started.extend(processes)
        return processes

    yield run
    for process in started:
        process.kill()
        process.join()


def wait_for_step(directory, step):
    begun = time.monotonic()
    path = directory / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert time.monotonic() - begun < DEADLINE_SECONDS
        time.sleep(0.005)


def statuses(processes):
    for process in processes:
        process.join(DEADLINE_SECONDS)
    return [process.exitcode for process in processes]


def everyone(processes):
    ranks = [psutil.Process(process.pid) for process in processes]
    return [*ranks, *(child for rank in ranks for child in rank.children(recursive=True))]


def measured(directory):
    """All metrics of every step except the times."""
    return {
        line["batch"]: {k: v for k, v in line["metrics"].items() if not k.startswith("throughput")}
        for line in metrics(directory)
    }


@pytest.mark.slow  # five runs of 40 steps
def test_a_run_signalled_twice_equals_the_uninterrupted_run_to_the_bit(start, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert statuses(start(whole)) == [0, 0]
    assert sorted(measured(whole)) == list(range(1, STEPS + 1))

    # One rank is signalled, as by an operator.
    ranks = start(stopped)
    wait_for_step(stopped, 4)
    os.kill(ranks[1].pid, signal.SIGUSR1)
    assert statuses(ranks) == [STOPPED_STATUS, STOPPED_STATUS]
    first = open_checkpoint(stopped).path
    assert 4 < step_of(first) < STEPS
    assert max(measured(stopped)) == step_of(first)

    # All processes are signalled twice, loader workers too, as by Slurm when it preempts a job.
    ranks = start(stopped)
    wait_for_step(stopped, step_of(first) + 2)
    for _ in range(2):
        for process in everyone(ranks):
            process.terminate()
    assert statuses(ranks) == [STOPPED_STATUS, STOPPED_STATUS]
    assert step_of(first) < step_of(open_checkpoint(stopped).path) < STEPS

    assert statuses(start(stopped)) == [0, 0]
    assert measured(stopped) == measured(whole)
    left, right = (open_checkpoint(folder) for folder in (whole, stopped))
    assert left.names() == right.names()
    assert all(torch.equal(left.read(name), right.read(name)) for name in left.names())
    log = (stopped / "log.txt").read_text()
    assert "SIGUSR1 at step" in log
    assert "SIGTERM at step" in log


def test_a_signal_to_one_rank_stops_all_of_them(start, tmp_path):
    ranks = start(tmp_path / "run")
    wait_for_step(tmp_path / "run", 2)
    os.kill(ranks[1].pid, signal.SIGUSR1)
    assert statuses(ranks) == [STOPPED_STATUS, STOPPED_STATUS]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signalled_run_saves_a_checkpoint_and_resumes(recipe, tmp_path, monkeypatch, number):
    def signal_itself(self, state, logger):
        if state.timestamp.batch.value == 1:
            for _ in range(2):  # Slurm signals twice
                os.kill(os.getpid(), number)

    directory = tmp_path / "stopped"
    arguments = [str(recipe), f"run.directory={directory}", "run.duration=4ba", "data.workers=0"]
    handlers = [signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(train.StopSignal, "before_forward", signal_itself)
        assert train.main(arguments) == STOPPED_STATUS
    # A stopped run ignores signals until its process ends, but this process continues.
    for each, handler in zip((signal.SIGUSR1, signal.SIGTERM), handlers, strict=True):
        signal.signal(each, handler)
    assert step_of(open_checkpoint(directory).path) == 2
    assert max(measured(directory)) == 2
    assert f"{number.name} at step 2: saving a checkpoint" in (directory / "log.txt").read_text()
    assert train.main(arguments) == 0
    assert sorted(measured(directory)) == [1, 2, 3, 4]


def test_a_run_signalled_in_its_last_step_ends_as_usual(recipe, tmp_path, monkeypatch):
    def agree(self, state, logger):
        self.agreed = signal.SIGUSR1 if state.timestamp.batch.value == 2 else 0

    monkeypatch.setattr(train.StopSignal, "batch_end", agree)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train.StopSignal, "__exit__", lambda self, *_: None)
    directory = tmp_path / "last"
    assert train.main([str(recipe), f"run.directory={directory}", "run.duration=2ba"]) == 0
    assert step_of(open_checkpoint(directory).path) == 2
    assert signal.signal(signal.SIGTERM, before) is not before
