"""A process that hangs prints its stacks, and so do the other ranks of its run."""

import contextlib
import os
import re
import signal
import time

import pytest
from recording import rank_context

from llmshearing import watchdog
from llmshearing.errors import RUN_ERROR_STATUS


def stuck_in_here(seconds):
    time.sleep(seconds)


def hold_the_interpreter():
    re.match(r"(a+)+$", "a" * 60 + "b")  # backtracks for ages without a look at other threads


def rank(directory, number, started, ranks, limit, body, arguments):
    log = os.open(directory / f"log-{number}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 2)
    watchdog.POLL_SECONDS = 0.05
    watchdog.GRACE_SECONDS = 2.0 if started < ranks else 20.0  # a machine may be busy
    with watchdog.Watchdog(directory, number, ranks) as watch:
        (directory / f"up-{number}").touch()
        while len(list(directory.glob("up-*"))) < started:
            time.sleep(0.01)
        watch.enter("step 17", limit)
        body(*arguments)
    os._exit(0)


@pytest.fixture
def run(tmp_path):
    """Start ranks as (limit, body, arguments); return their exit statuses and output."""
    context, started = rank_context(), []

    def go(*plans, of=None):
        for number, (limit, body, *arguments) in enumerate(plans):
            given = (tmp_path, number, len(plans), of or len(plans), limit, body, arguments)
            started.append(context.Process(target=rank, args=given))
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=60)
        logs = [(tmp_path / f"log-{n}.txt").read_text() for n in range(len(plans))]
        return [process.exitcode for process in started], logs

    yield go
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def test_every_rank_prints_its_stacks_when_one_hangs(run, tmp_path):
    statuses, logs = run((0.3, stuck_in_here, 60), (50, time.sleep, 60))
    assert statuses == [RUN_ERROR_STATUS] * 2
    assert re.search(
        r"rank 0 of 2 .* has been in step 17 for \d s, limit 0.3 s; its stacks", logs[0]
    )
    assert "in stuck_in_here" in logs[0]
    assert re.search(
        r"rank 1 of 2 .* has been in step 17 for .*; rank 0 hangs; its stacks", logs[1]
    )
    for number, log in enumerate(logs):
        written = (tmp_path / "stacks" / f"rank{number}.txt").read_text()
        assert "test_watchdog.py" in written
        assert written.splitlines()[0] in log
        assert "the stacks of all ranks are in" in log
        assert "except rank" not in log


def test_a_rank_without_stacks_is_named(run):
    statuses, logs = run((0.3, stuck_in_here, 60), of=3)
    assert statuses == [RUN_ERROR_STATUS]
    assert "except ranks 1, 2: stopped, dead, or on a machine" in logs[0]


def test_work_within_its_limit_succeeds_despite_old_stacks(run, tmp_path):
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank1.txt").write_text("of an earlier run")
    statuses, logs = run((30, time.sleep, 0.5), (30, time.sleep, 0.5))
    assert statuses == [0, 0]
    assert logs == ["", ""]


@pytest.mark.slow
def test_a_rank_that_holds_the_interpreter_prints_its_stack(run):
    statuses, logs = run((0.2, hold_the_interpreter))
    assert statuses[0] not in (0, None)
    assert "in hold_the_interpreter" in logs[0]
