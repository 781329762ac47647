"""Time left, from the plan and from what was."""

import json

import pytest
from rich.console import Console

from llmshearing.quickstart import progress
from llmshearing.quickstart.progress import PathProgress, Training
from llmshearing.quickstart.stages import Stage


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def write_run(directory, step, steps=200):
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(f"run:\n  duration: {steps}ba\n")
    metrics = {"loss/train/ce": 5.0, "throughput/tokens_per_second": 1234.0}
    lines = [
        {"batch": step - 10, "tokens": 0, "seconds": 0, "metrics": metrics},
        {"batch": step, "tokens": 0, "seconds": 0, "metrics": {"metrics/a/loss": 4.0}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text + '{"batch": 999, "met')


def test_a_running_stage_is_read_from_its_metrics(tmp_path):
    assert Training.read(tmp_path / "run") is None
    write_run(tmp_path / "run", 50)
    found = Training.read(tmp_path / "run")
    assert (found.step, found.steps, found.loss) == (50, 200, 5.0)
    assert str(found) == "step 50/200  loss 5.000  1,234 tokens/s"


def test_time_left_follows_what_stages_took(clock, tmp_path):
    first = Stage("a", "a", 10)
    second = Stage("b", "b", 100, run_directory=tmp_path / "run")
    third = Stage("c", "c", 50)
    with PathProgress([first, second, third], Console(quiet=True)) as path:
        path.begin(first)
        clock.now += 20  # twice as slow as planned
        path.end(first)
        path.begin(second)
        assert path.seconds_left(second, 0.0, 0.0) == pytest.approx(2 * 150)
        clock.now += 60
        assert path.seconds_left(second, 0.5, 60.0) == pytest.approx(100 * 80 / 60)
        path.end(second)
        assert path.seconds_left(third, 1.0, 1.0) == 0


def test_skipped_stages_do_not_count_as_fast(clock):
    first, second = Stage("a", "a", 100), Stage("b", "b", 50)
    with PathProgress([first, second], Console(quiet=True)) as path:
        path.skip(first)
        path.begin(second)
        assert path.seconds_left(second, 0.0, 0.0) == pytest.approx(50)


def test_lines_where_there_is_no_terminal(clock, tmp_path, capsys):
    stage = Stage("b", "train it", 100, run_directory=tmp_path / "run")
    write_run(tmp_path / "run", 100)
    with PathProgress([stage], Console(stderr=True, force_terminal=False)) as path:
        path.begin(stage)
        for _ in range(30):
            clock.now += 1
            path.tick(stage)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[1/1] train it  step 100/200  loss 5.000  1,234 tokens/s  50%")
    assert lines[0].endswith("left")
