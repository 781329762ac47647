"""Speed, utilisation and start-up times in the log of a real run."""

import re

import pytest
from rich.console import Console
from runs import run_here, series
from terminals import pseudo_terminal

from llmshearing import progress
from llmshearing.callbacks.training_progress import FlopsModel
from llmshearing.quickstart.run import TRAINING_STEP

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


def test_utilisation_is_tokens_times_operations_over_the_peak():
    one = FlopsModel(flops_per_token=6_000, peak=3e6, device="a device")
    assert one.utilisation(100) == pytest.approx(0.2)
    assert "6000 operations per token" in str(one)
    assert "3e+06 operations per second, the peak of a device" in str(one)
    assert FlopsModel(6_000, None, "a device").utilisation(100) is None


def test_the_log_and_the_bar_show_speed_and_utilisation(recipe_file, tmp_path, monkeypatch):
    with pseudo_terminal() as (file, read):
        monkeypatch.setattr(progress, "CONSOLE", Console(file=file, width=200, highlight=False))
        lines = run_here(recipe_file, "run.duration=2ba", "run.peak_flops=1e9")
        shown = read()
    assert re.search(r"2/2 steps, ce \d\.\d{4} .* tokens/s \(\d+\.\d% MFU\), 0s left", shown)
    assert "step 2/2" not in shown  # the bar replaces it
    assert "MFU (model FLOPs utilisation) is" in shown
    text = (tmp_path / "run/log.txt").read_text()
    # 3 layers: 4 x 32 x 32 + 3 x 32 x 48 each, the head 128 x 32; attention 12 x 3 x 32 x 32.
    operations = 6 * (3 * (4096 + 4608) + 4096) + 36_864
    assert f"{operations:.4g} operations per token (6 x matrix parameters + 12 x layers" in text
    assert "1e+09 operations per second, the peak of this processor" in text
    assert re.search(r"step 2/2 .* tokens/s \(\d+\.\d% MFU\)  \d+s left", text)
    assert TRAINING_STEP.findall(text)[-1][:2] == ("2", "2")  # what the quickstart shows
    each = series(lines, "throughput/tokens_per_second_per_device")
    for step, part in series(lines, "throughput/model_flops_utilisation").items():
        assert part == pytest.approx(each[step] * operations / 1e9)
    for what in ("weights", "data index", "sharding", "first batch", "first step"):
        assert re.search(rf"start: {what} took \d+\.\d s", text), what


def test_without_a_known_peak_no_utilisation_is_reported(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=1ba")
    assert not series(lines, "throughput/model_flops_utilisation")
    text = (tmp_path / "run/log.txt").read_text()
    assert "MFU is not reported because the peak of this processor is unknown" in text
    assert "% MFU" not in text
