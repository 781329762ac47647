"""Commands as processes of their own."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from rich.console import Console

from llmshearing.errors import UserError
from llmshearing.quickstart import runner
from llmshearing.quickstart.memory import MemoryWatch
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.stages import Stage


@pytest.fixture
def go(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "TICK_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGTERM)

    def run(*stages):
        record = Record.open(tmp_path / "out", None)
        logs = tmp_path / "out/logs"
        runner.run_stages(stages, record, logs, tmp_path, Console(quiet=True))
        return record

    yield run
    signal.signal(signal.SIGTERM, before)


def python(name, code, **fields):
    return Stage(name, name, 1.0, ("python", "-c", code), **fields)


def test_finished_stages_do_not_run_again(go, tmp_path):
    count = "open('count', 'a').write('x')"
    go(python("a", count))
    record = go(python("a", count), python("b", count))
    assert (tmp_path / "count").read_text() == "xx"
    assert list(record.done) == ["a", "b"]


def test_commands_run_with_this_python_and_leave_a_log(go, tmp_path):
    go(python("a", "import sys; print(sys.prefix)"))
    assert (tmp_path / "out/logs/a.log").read_text().strip() == sys.prefix


def test_a_failure_tells_the_end_of_the_output(go, tmp_path):
    with pytest.raises(UserError, match=r"status 3.*(?s:.)*a\.log.*(?s:.)*too bad"):
        go(python("a", "import sys; print('too bad'); sys.exit(3)"))
    assert not Record.open(tmp_path / "out", None).done


def test_no_such_command(go):
    with pytest.raises(UserError, match="make env"):
        go(Stage("a", "a", 1.0, ("no-such-command-anywhere",)))


def test_calls_run_in_this_process(go):
    found = []
    go(Stage("a", "a", 1.0, call=lambda: found.append(os.getpid())))
    assert found == [os.getpid()]


SCRIPT = """
import pathlib, sys
from rich.console import Console
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.runner import run_stages
from llmshearing.quickstart.stages import Stage
root = pathlib.Path(sys.argv[1])
sleeper = "import time; print('up', flush=True); time.sleep(60)"
code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
stage = Stage("a", "a", 1.0, ("python", "-c", code))
run_stages([stage], Record.open(root, None), root / "logs", root, Console(quiet=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_and_its_children_end_with_the_quickstart(tmp_path, number):
    root = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], stderr=subprocess.DEVNULL)
    log, deadline = root / "logs/a.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3  # the guard, the command and what the command started
    process.send_signal(number)
    assert process.wait(30) != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_memory_counts_what_a_process_starts():
    with MemoryWatch() as alone:
        time.sleep(0.1)
    code = "x = b'1' * 300_000_000; print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        with MemoryWatch() as both:
            time.sleep(0.1)
        child.communicate(b"\n")
    assert 0.28 < both.peak_gb - alone.peak_gb < 0.5
