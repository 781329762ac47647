"""Progress of long work."""

import logging
import re

import pytest
from rich.console import Console
from terminals import pseudo_terminal

from llmshearing import progress
from llmshearing.progress import IN_BAR, ConsoleHandler, Progress, duration


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    """Standard error is a terminal; a function reads what it shows."""
    monkeypatch.setenv("TERM", "xterm-256color")
    with pseudo_terminal() as (file, read):
        monkeypatch.setattr(progress, "CONSOLE", Console(file=file, width=100, highlight=False))
        yield read


def test_a_line_at_intervals_with_rate_and_time_left(clock, capsys):
    with Progress("evaluate", 1000, "rows") as shown:
        for _ in range(25):
            clock.now += 1
            shown.advance(10, detail="loss 2.50")
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 100/1,000 rows, 10 rows/s, loss 2.50, 1m30s left",
        "evaluate: 200/1,000 rows, 10 rows/s, loss 2.50, 1m20s left",
        "evaluate: 250/1,000 rows, in 25s, 10 rows/s",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys):
    with Progress("pack", 100.0, "MB") as shown:
        shown.first = shown.done = 50.0
        clock.now += 10
        shown.update(60.0)
    assert "pack: 60.0/100.0 MB, 1 MB/s, 40s left" in capsys.readouterr().err


def test_a_caller_may_know_the_time_left(clock, capsys):
    with Progress("[1/2] train", 1.0) as shown:
        clock.now += 10
        shown.update(0.25, title="[2/2] export", detail="step 3/4", left=5.0)
    assert "[2/2] export: 25%, step 3/4, 5s left\n" in capsys.readouterr().err


def test_other_ranks_and_callers_with_their_own_log_write_nothing(clock, capsys):
    for options in ({"quiet": True}, {"seconds_between_lines": None}):
        with Progress("evaluate", 10, "rows", **options) as shown:
            clock.now += 100
            shown.advance(5)
    assert capsys.readouterr().err == ""


def test_a_failure_leaves_no_summary(clock, capsys):
    with pytest.raises(ZeroDivisionError), Progress("evaluate", 10, "rows"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_line_in_place(clock, terminal):
    with Progress("evaluate", 1000, "rows") as shown:
        for _ in range(3):
            clock.now += 1
            shown.advance(100, detail="loss 2.50")
        text = terminal()
    assert "300/1,000 rows, 100 rows/s, loss 2.50, 7s left" in text
    assert "\x1b[2K" in text  # the line is erased before it is written again
    assert text.count("\n") == 0
    assert re.search(r"evaluate: 300/1,000 rows, in 3s, 100 rows/s\r\n$", terminal())


def test_log_records_go_above_the_bar_and_are_not_repeated_there(clock, terminal):
    log, handler = logging.getLogger("a test"), ConsoleHandler()
    log.propagate, log.level = False, logging.INFO
    log.addHandler(handler)
    with Progress("train", 10, "steps", seconds_between_lines=None) as shown:
        clock.now += 1
        shown.advance(1)
        terminal()
        log.info("step 1", extra=IN_BAR)
        log.info("evaluated")
        text = terminal()
    assert "step 1" not in text
    assert text.index("evaluated\r\n") < text.index("1/10 steps")


def test_log_records_of_a_bar_are_written_where_there_is_no_terminal(capsys):
    record = logging.makeLogRecord({"msg": "step 1", **IN_BAR})
    ConsoleHandler().emit(record)
    assert capsys.readouterr().err == "step 1\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (3725, "1h02m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
