"""Ranks that never connect, die or hang, and non-finite gradients: the run ends and says why."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch
from composer.core import Callback
from composer.utils import dist
from recording import Witness, seen
from runs import log_file, metrics, start_ranks

from llmshearing import preflight, train
from llmshearing.checkpoints.layout import latest_checkpoint, step_of
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import (
    RUN_ERROR_STATUS,
    USER_ERROR_STATUS,
    RunError,
    UserError,
    exits_on_user_error,
)
from llmshearing.parallelism import failures_explained
from llmshearing.progress import set_up_log

pytestmark = [
    pytest.mark.world_size(2),
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
]

DEADLINE_SECONDS = 120  # a machine may be busy


@pytest.fixture
def start(recipe_file, tmp_path):
    """Start a run of two ranks; kill what is left of them at the end."""
    started = []

    def go(*overrides, **how):
        arguments = [str(recipe_file), *overrides]
        started.extend(start_ranks(2, tmp_path / "logs", arguments, **how))
        return started

    yield go
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.join()


def log_of(tmp_path: Path, rank: int) -> str:
    return log_file(tmp_path / "logs", rank).read_text()


def wait_for_step(tmp_path: Path, step: int, processes) -> None:
    begun, path = time.monotonic(), tmp_path / "run" / "metrics.jsonl"
    while not path.is_file() or len(path.read_text().splitlines()) < step:
        assert all(process.is_alive() for process in processes), log_of(tmp_path, 0)
        assert time.monotonic() - begun < DEADLINE_SECONDS
        time.sleep(0.02)


def statuses(processes) -> list[int | None]:
    for process in processes:
        process.join(timeout=DEADLINE_SECONDS)
    return [process.exitcode for process in processes]


def test_a_rank_that_never_connects_ends_the_run_with_its_timeout(start, tmp_path):
    processes = start("run.start_timeout=2s", only={0})
    assert statuses(processes) == [RUN_ERROR_STATUS]
    text = log_of(tmp_path, 0)
    assert "rank 0 waited 2 s (run.start_timeout) for the 2 ranks of the run" in text
    assert "1/2 clients joined" in text
    assert "Traceback" not in text


def test_another_program_on_the_port_ends_the_run_with_its_timeout(start, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()  # accepts connections and never answers
        processes = start("run.start_timeout=2s", only={1}, port=other.getsockname()[1])
        assert statuses(processes) == [RUN_ERROR_STATUS]
    text = log_of(tmp_path, 1)
    assert "rank 1 waited 2 s (run.start_timeout) for the 2 ranks of the run" in text
    assert "Traceback" not in text


def test_a_killed_loader_worker_is_reported_on_every_rank(start, tmp_path):
    processes = start("run.duration=10000ba", "run.eval_interval=10000ba", "data.workers=1")
    wait_for_step(tmp_path, 2, processes)
    (worker,) = psutil.Process(processes[1].pid).children()
    worker.kill()
    assert statuses(processes) == [RUN_ERROR_STATUS] * 2
    assert "rank 1 lost a loader worker" in log_of(tmp_path, 1)
    assert "rank 0 lost the connection to the other ranks" in log_of(tmp_path, 0)
    for rank in range(2):
        assert "Traceback" not in log_of(tmp_path, rank)


@pytest.mark.slow
def test_damage_found_by_a_loader_worker_ends_all_ranks(start, recipe_file, tiny_tree, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(tiny_tree, tree)
    processes = start(
        f"data.root={tree}", "run.duration=10000ba", "run.eval_interval=10000ba", "data.workers=1"
    )
    wait_for_step(tmp_path, 2, processes)
    for shard in (tree / "prune").rglob("*.mds"):
        os.truncate(shard, shard.stat().st_size // 2)
    found = statuses(processes)
    assert USER_ERROR_STATUS in found
    assert 0 not in found
    rank = found.index(USER_ERROR_STATUS)
    assert "prepare it again" in log_of(tmp_path, rank)


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run_and_leaves_nothing_behind(start, tmp_path):
    processes = start(
        "run.duration=10000ba", "run.eval_interval=10000ba", "run.step_timeout=3s", "data.workers=1"
    )
    wait_for_step(tmp_path, 2, processes)
    workers = [child for p in processes for child in psutil.Process(p.pid).children()]
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(timeout=DEADLINE_SECONDS)
    assert processes[0].exitcode == RUN_ERROR_STATUS
    text = log_of(tmp_path, 0)
    assert re.search(
        r"rank 0 of 2 .* has been in .*step \d+ for \d+ s, limit 3 s; its stacks", text
    )
    assert "train.py" in text
    assert "except rank 1: stopped, dead" in text
    assert "rank 0 of 2" in (tmp_path / "run/stacks/rank0.txt").read_text()
    # A killed run leaves neither processes nor shared memory.
    processes[1].kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    pids = [p.pid for p in processes] + [w.pid for w in workers]
    left = [p.name for p in Path("/dev/shm").iterdir() if any(f"_{n}_" in p.name for n in pids)]
    assert not left


class Sleeper(Callback):
    """Sleeps on rank 1 in the third step."""

    def batch_start(self, state, logger):
        if os.environ["RANK"] == "1" and state.timestamp.batch.value == 2:
            self.stuck()

    def stuck(self):
        time.sleep(600)


def hanging(arguments):
    original = train.build_trainer

    def with_sleeper(*given):
        return original(*given, extra_callbacks=[Sleeper()])

    train.build_trainer = with_sleeper
    return train.main(arguments)


@pytest.mark.slow
def test_a_hanging_rank_makes_every_rank_write_its_stacks(start, tmp_path):
    processes = start("run.step_timeout=5s", run=hanging)
    assert statuses(processes) == [RUN_ERROR_STATUS] * 2
    assert "in stuck" in log_of(tmp_path, 1)
    for rank in range(2):
        assert f"rank {rank} of 2" in log_of(tmp_path, rank)
        assert "the stacks of all ranks are in" in log_of(tmp_path, rank)


class Planter(Callback):
    """Makes a gradient NaN in step 5: of one row at a block of rank 1, or of a weight."""

    def __init__(self, where):
        self.where = where

    def before_backward(self, state, logger):
        if state.timestamp.batch.value != 5:
            return
        model = getattr(state.model, "module", state.model).model
        weight = model.get_submodule("model.layers.1.mlp.up_proj").weight
        if self.where == "weight":
            handle = weight.register_hook(lambda gradient: gradient * torch.nan)
            self.handles = [handle]

    def before_forward(self, state, logger):
        if self.where == "weight" or state.timestamp.batch.value != 5:
            return
        if os.environ["RANK"] == "1":
            model = getattr(state.model, "module", state.model).model
            block = model.get_submodule("model.layers.1")
            self.handles = [block.register_forward_hook(self.plant)]

    def plant(self, block, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output

        def second_row(gradient):
            gradient = gradient.clone()
            gradient[1, 3, 5] = torch.inf
            return gradient

        hidden.register_hook(second_row)


def planted_run(recipe, where, *overrides):
    checked, inputs = preflight.resolve(recipe, overrides)
    directory = Path(checked.run.directory)
    directory.mkdir(parents=True, exist_ok=True)
    set_up_log(directory, dist.get_global_rank())
    extra = [Planter(where), Witness(directory)]
    train.build_trainer(checked, inputs, extra_callbacks=extra).fit()


def test_a_nan_weight_gradient_stops_before_the_weights_change(recipe_file, tmp_path):
    overrides = ["run.checkpoint_interval=1ba", "run.keep_checkpoints=-1"]
    with pytest.raises(UserError) as caught:
        planted_run(recipe_file, "weight", *overrides)
    assert re.search(
        r"gradient that is not finite at step 5, in model.model.layers.1.mlp.up_proj.weight, "
        r"but in no single row \(samples 40 to 47 of .* on rank 0\). No checkpoint contains it",
        str(caught.value),
    )
    last = latest_checkpoint(tmp_path / "run")
    assert last is not None
    assert step_of(last) == 5  # after five good steps
    tensors = open_checkpoint(last)
    assert all(tensors.read(name).isfinite().all() for name in tensors.names())
    # It loads, and the run resumes from it to its end.
    checked, inputs = preflight.resolve(recipe_file, overrides)
    train.train(checked, inputs)
    assert metrics(tmp_path / "run")[-1]["batch"] == 8


@exits_on_user_error
def planted_main(arguments):
    dist.initialize_dist("cpu")
    planted_run(Path(arguments[0]), "row", *arguments[1:])


def test_an_infinite_row_gradient_names_rank_domain_and_sample(start, tmp_path):
    processes = start("parallelism=fsdp2", run=planted_main)
    assert statuses(processes) == [USER_ERROR_STATUS] * 2
    batch = [json.loads(line) for line in (tmp_path / "run/seen-1.jsonl").read_text().splitlines()]
    assert len(seen(tmp_path / "run")) == 6
    domain = ["prose", "code", "letters"][batch[5]["domains"][1]]
    for rank in range(2):
        assert (
            f"a gradient that is not finite at step 5, on rank 1 in {domain} "
            f"(samples {batch[5]['samples'][1]}). No checkpoint contains it"
        ) in log_of(tmp_path, rank)


@pytest.mark.parametrize("end", ["is killed by signal: Killed", "exited unexpectedly"])
def test_only_a_lost_worker_is_told_as_one(end):
    lost = pytest.raises(RunError, match="rank 0 lost a loader worker: DataLoader worker")
    with lost, failures_explained():
        raise RuntimeError(f"DataLoader worker (pid 17) {end}")
    with pytest.raises(RuntimeError, match="DataLoader worker 0: no column"), failures_explained():
        raise RuntimeError("DataLoader worker 0: no column")
