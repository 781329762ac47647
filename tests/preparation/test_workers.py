"""The line that tells how far the work is."""

import re
import sys

import pytest

from llmshearing.errors import UserError
from llmshearing.preparation import workers


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    return now


def test_progress_tells_rate_and_time_left(clock, capsys):
    progress = workers.Progress("tokenising", 400_000_000)
    clock[0] += 5
    progress.add(50_000_000, 10_000_000)
    assert capsys.readouterr().err == "", "no terminal: a line now and then"
    clock[0] += 5
    progress.add(50_000_000, 10_000_000)
    line = capsys.readouterr().err
    assert "100.0 of 400.0 MB, 10.0 MB/s, 2.00 M tokens/s, 30 s left" in line
    assert line.endswith("\n")
    clock[0] += 90
    progress.add(300_000_000, 60_000_000)
    progress.close()
    told = capsys.readouterr().err.splitlines()[-1]
    assert "400.0 of 400.0 MB, 4.0 MB/s, 0.80 M tokens/s, in 1 min 40 s" in told


def test_on_a_terminal_the_line_is_overwritten(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = workers.Progress("packing", 10_000_000)
    for _ in range(3):
        clock[0] += 1
        progress.add(1_000_000, 1)
    assert re.fullmatch(r"(packing: [^\r\n]* left +\r){3}", capsys.readouterr().err)


def test_times_as_people_say_them():
    assert [workers.duration(x) for x in (0.4, 61, 3600 * 5 + 60)] == [
        "0 s", "1 min 01 s", "5 h 01 min",
    ]  # fmt: skip


def add(about):
    return lambda item: (about, item + 1)


def refuse(about):
    raise UserError(f"cannot start with {about}")


def test_work_reaches_other_processes_without_a_file(tmp_path, monkeypatch):
    """A file that holds a pickle could be replaced by another user of a shared folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert sorted(workers.results(2, add, "x", [1, 2, 3])) == [("x", 2), ("x", 3), ("x", 4)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_at_the_start_of_a_worker_is_one_message(processes):
    with pytest.raises(UserError, match="cannot start with 7"):
        list(workers.results(processes, refuse, 7, [1, 2]))
