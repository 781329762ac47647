"""Speed, utilisation and start-up times in the log of a real run."""

import re

import pytest
from rich.console import Console
from runs import log_file, metrics, run_here, series, start_ranks
from terminals import pseudo_terminal

from llmshearing import progress
from llmshearing.callbacks.training_progress import FlopsModel, TrainingProgress
from llmshearing.quickstart.run import TRAINING_STEP

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

USED = "throughput/model_flops_utilisation"
# 3 layers: 4 x 32 x 32 + 3 x 32 x 48 each, the head 128 x 32; attention 12 x 3 x 32 x 32.
OPERATIONS = 6 * (3 * (4096 + 4608) + 4096) + 36_864


def test_utilisation_is_tokens_times_operations_over_the_peak():
    one = FlopsModel(flops_per_token=6_000, peak=3e6, device="a device")
    assert one.utilisation(100) == pytest.approx(0.2)
    assert "6000 operations per token" in str(one)
    assert "3e+06 operations per second, the peak of a device" in str(one)
    assert FlopsModel(6_000, None, "a device").utilisation(100) is None


def test_evaluation_is_not_training_time():
    clock = TrainingProgress(1, 128, 8, FlopsModel(6_000, None, "a device"))
    clock.since = (0.0, 3)
    clock.eval_start(None, None)
    clock.evaluation_start -= 1000.0  # seconds
    clock.eval_end(None, None)
    assert clock.since == (pytest.approx(1000.0, abs=60.0), 3)


def test_the_log_and_the_bar_show_speed_and_utilisation(recipe_file, tmp_path, monkeypatch):
    with pseudo_terminal() as (file, read):
        monkeypatch.setattr(progress, "CONSOLE", Console(file=file, width=200, highlight=False))
        lines = run_here(recipe_file, "run.duration=2ba", "run.peak_flops=1e9")
        shown = read()
    assert re.search(r"2/2 steps, ce \d\.\d{4} .* tokens/s \(\d+\.\d% MFU\), 0s left", shown)
    assert "step 2/2" not in shown  # the bar replaces it
    assert "MFU (model FLOPs utilisation) is" in shown
    text = (tmp_path / "run/log.txt").read_text()
    assert f"{OPERATIONS:.4g} operations per token (6 x matrix parameters + 12 x layers" in text
    assert "1e+09 operations per second, the peak of this processor" in text
    assert re.search(r"step 2/2 .* tokens/s \(\d+\.\d% MFU\)  \d+s left", text)
    assert TRAINING_STEP.findall(text)[-1][:2] == ("2", "2")  # what the quickstart shows
    each = series(lines, "throughput/tokens_per_second_per_device")
    for step, part in series(lines, USED).items():
        assert part == pytest.approx(each[step] * OPERATIONS / 1e9)
    for what in ("weights", "data index", "sharding", "first batch", "first step"):
        assert re.search(rf"start: {what} took \d+\.\d s", text), what


def test_without_a_known_peak_no_utilisation_is_reported(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=1ba")
    assert not series(lines, USED)
    text = (tmp_path / "run/log.txt").read_text()
    assert "MFU is not reported because the peak of this processor is unknown" in text
    assert "% MFU" not in text


@pytest.mark.world_size(2)
def test_speed_and_utilisation_are_those_of_one_of_the_ranks(recipe_file, tmp_path):
    words = [str(recipe_file), "run.duration=1ba", "run.peak_flops=1e9"]
    for rank in (ranks := start_ranks(2, tmp_path / "logs", words)):
        rank.join(200)
    assert [rank.exitcode for rank in ranks] == [0, 0], log_file(tmp_path / "logs", 0).read_text()
    (found,) = [x["metrics"] for x in metrics(tmp_path / "run") if USED in x["metrics"]]
    each = found["throughput/tokens_per_second"] / 2
    assert found["throughput/tokens_per_second_per_device"] == pytest.approx(each)
    assert found[USED] == pytest.approx(each * OPERATIONS / 1e9)
