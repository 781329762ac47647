"""A run whose checkpoints were removed does not start again without being asked to."""

import json
import shutil

import pytest

from llmshearing.checkpoints.layout import resumed_checkpoint
from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.train import main as train


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
