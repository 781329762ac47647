"""Only old checkpoints are removed; a run without any does not start again unless asked to."""

import json
import shutil

import pytest
from runs import run_here

from llmshearing.checkpoints.layout import resumed_checkpoint, step_of, whole_checkpoints
from llmshearing.checkpoints.writing import keep_last
from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.train import main as train


def test_the_newest_checkpoints_are_kept(recipe_file, tmp_path):
    every = ["run.duration=3ba", "run.checkpoint_interval=1ba", "run.keep_checkpoints=-1"]
    run_here(recipe_file, *every)
    for count, kept in ((5, [1, 2, 3]), (-1, [1, 2, 3]), (3, [1, 2, 3]), (2, [2, 3]), (1, [3])):
        keep_last(tmp_path / "run", count)
        assert [step_of(path) for path in whole_checkpoints(tmp_path / "run")] == kept


def again(run, tmp_path):
    """The recipe of a finished run, for more steps of it."""
    recipe = json.loads((run / "manifest.json").read_text())["recipe"]
    recipe["run"] |= {"directory": str(run), "duration": "4ba"}
    (tmp_path / "again.yaml").write_text(json.dumps(recipe))
    return str(tmp_path / "again.yaml")


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "content"])
def test_metrics_are_not_replaced(run, tmp_path, capsys, whole):
    recipe, metrics = again(run, tmp_path), run / "metrics.jsonl"
    with metrics.open("a") as file:  # a third step, after the checkpoint of the second
        line = json.loads(metrics.read_text().splitlines()[-1])
        file.write(json.dumps(line | {"batch": 3}) + "\n")
    before = metrics.read_bytes()
    shutil.rmtree(run / "checkpoints")
    if not whole:
        (run / "checkpoints").mkdir()
    for command in (lambda: train([recipe]), lambda: main(["validate", recipe])):
        assert command() == 2
        told = capsys.readouterr().err
        assert f"error: {metrics} has 3 steps, but {run / 'checkpoints'} has no checkpoint" in told
        assert f"or remove {metrics}" in told
    assert metrics.read_bytes() == before
    assert (run / "checkpoints").exists() != whole, "so that the next start is refused too"
    metrics.unlink()
    assert train([recipe]) == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(run):
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert resumed_checkpoint(run) is None  # two steps, and the first checkpoint was due then
    (run / "checkpoints").rmdir()
    with pytest.raises(UserError, match="has 2 steps, but"):
        resumed_checkpoint(run)
    (run / "metrics.jsonl").write_text("")
    assert resumed_checkpoint(run) is None
    (run / "metrics.jsonl").unlink()
    assert resumed_checkpoint(run) is None
