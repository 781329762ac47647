"""Which steps a run writes to `metrics.jsonl`, and what a resumed run keeps of them."""

import pytest
from runs import metrics, run_here

pytestmark = pytest.mark.filterwarnings("default")  # allow Composer's own warnings

SETTINGS = (
    "run.duration=8ba",
    "run.log_interval=3ba",
    "run.eval_interval=4ba",
    "run.checkpoint_interval=4ba",
    "run.keep_checkpoints=-1",
    "data.eval_rows=1",
    "data.microbatch=8",
)


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(recipe_file, tmp_path):
    run_here(recipe_file, *SETTINGS)
    directory = tmp_path / "run"
    whole = metrics(directory)
    assert [line["batch"] for line in whole] == [3, 4, 6, 8]  # intervals, evaluations and the end
    assert [line["tokens"] for line in whole] == [n * 8 * 32 for n in (3, 4, 6, 8)]
    assert "metrics/prose/loss" in whole[1]["metrics"]
    assert "metrics/prose/loss" not in whole[2]["metrics"]
    assert not any(name.startswith("time/") for line in whole for name in line["metrics"])
    for late in (directory / "checkpoints").glob("ba8*"):
        late.unlink()
    run_here(recipe_file, *SETTINGS)
    resumed = metrics(directory)
    assert [line["batch"] for line in resumed] == [3, 4, 6, 8]
    assert resumed[:2] == whole[:2]
    assert resumed[2] != whole[2]  # written again, at another time
    seconds = [line["seconds"] for line in resumed]
    assert seconds == sorted(seconds)
