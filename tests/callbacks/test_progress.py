"""Speed, utilisation and the parts of the start, as they stand in the log of a real run."""

import re

import pytest
from runs import run_here, series

from llmshearing.callbacks.progress import Arithmetic

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


def test_utilisation_is_tokens_times_operations_over_the_peak():
    one = Arithmetic(flops_per_token=6_000, peak=3e6, device="a device")
    assert one.utilisation(100) == pytest.approx(0.2)
    assert "6000 operations per token" in one.told()
    assert "3e+06 operations per second, the peak of a device" in one.told()
    assert Arithmetic(6_000, None, "a device").utilisation(100) is None


def test_the_log_says_how_fast_and_of_what(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=2ba", "run.peak_flops=1e9")
    text = (tmp_path / "run/log.txt").read_text()
    # 3 layers: 4 x 32 x 32 + 3 x 32 x 48 each, the head 128 x 32; attention 12 x 3 x 32 x 32.
    operations = 6 * (3 * (4096 + 4608) + 4096) + 36_864
    assert f"{operations:.4g} operations per token (6 x matrix parameters + 12 x layers" in text
    assert "1e+09 operations per second, the peak of this processor" in text
    assert re.search(r"step 2/2 .* tokens/s \(\d+\.\d% MFU\)  \d+s left", text)
    each = series(lines, "throughput/tokens_per_second_per_device")
    for step, part in series(lines, "throughput/model_flops_utilisation").items():
        assert part == pytest.approx(each[step] * operations / 1e9)
    for what in ("weights", "data index", "sharding", "first batch", "first step"):
        assert re.search(rf"start: {what} took \d+\.\d s", text), what


def test_without_a_peak_there_is_no_utilisation(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=1ba")
    assert not series(lines, "throughput/model_flops_utilisation")
    text = (tmp_path / "run/log.txt").read_text()
    assert "no utilisation, since the peak of this processor is not known" in text
    assert "MFU" not in text
