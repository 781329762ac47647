"""A run resumes from a checkpoint of either kind, on the same or another number of ranks."""

import json

import pytest
import torch
from checkpoint_files import equal_tensors, take_over
from ranks import Ranks
from recording import losses, seen
from runs import metrics, run_here, series

from llmshearing.checkpoints.layout import FOLDER, whole_checkpoints
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import UserError

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours
TOLERANCE = 1e-5  # of losses on another number of ranks, where sums are taken in another order


@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("stage", ["prune", "continue"])
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(recipe_file, tmp_path, stage, kind):
    given = json.loads(recipe_file.read_text())
    given["run"]["checkpoint"] = kind
    given["mixture"] = {"policy": "constant", "update_interval": "2ba"}
    if stage == "continue":
        del given["target"]
    recipe_file.write_text(json.dumps(given))
    whole = run_here(recipe_file, "run.keep_checkpoints=-1")
    resumed = tmp_path / "resumed"
    take_over(tmp_path / "run", resumed, 4, kind)
    run_here(recipe_file, f"run.directory={resumed}")
    again = metrics(resumed)
    assert [line["batch"] for line in again] == [5, 6, 7, 8]
    for name in whole[-1]["metrics"]:
        if not name.startswith("throughput"):
            expected = {step: v for step, v in series(whole, name).items() if step > 4}
            assert series(again, name) == expected, name
    assert equal_tensors(tmp_path / "run", resumed)


def test_the_kind_may_change_and_the_last_checkpoints_are_kept(recipe_file, tmp_path):
    run = tmp_path / "run"
    for duration, kind in ((2, "sharded"), (4, "full"), (6, "sharded")):
        overrides = ("run.checkpoint_interval=1ba", f"run.checkpoint={kind}")
        run_here(recipe_file, f"run.duration={duration}ba", *overrides)
        first = [f"ba{n}" + ".pt" * (kind == "full") for n in (duration - 1, duration)]
        assert [path.name for path in whole_checkpoints(run)] == first
    assert len(list((run / FOLDER).iterdir())) == 4  # two, each with its manifest
    run_here(recipe_file, f"run.directory={tmp_path}/other", "run.duration=6ba")
    assert open_checkpoint(run).names() == open_checkpoint(tmp_path / "other").names()


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ("kind", "mode", "before", "after"),
    [
        ("sharded", "fsdp2", 2, 1),
        *(
            pytest.param(kind, mode, before, after, marks=pytest.mark.slow)
            for kind in ("full", "sharded")
            for mode in ("ddp", "fsdp2")
            for before, after in ((2, 1), (1, 2))
            if (kind, mode, before) != ("sharded", "fsdp2", 2)
        ),
    ],
)
def test_another_number_of_ranks_sees_the_same(recipe_file, tmp_path, kind, mode, before, after):
    overrides = (f"run.checkpoint={kind}", f"parallelism={mode}", "run.keep_checkpoints=-1")
    first, second = tmp_path / "first", tmp_path / "second"
    Ranks(before, first, recipe_file, *overrides).finish()
    take_over(first, second, 4, kind)
    Ranks(after, second, recipe_file, *overrides).finish()
    assert seen(second) == {step: rows for step, rows in seen(first).items() if step >= 4}
    assert sorted(losses(second)) == [4, 5, 6, 7]
    for name in ("loss/train/ce", "loss/train/lagrangian", "metrics/prose/loss"):
        later = {step: loss for step, loss in series(metrics(first), name).items() if step > 4}
        found = series(metrics(second), name)
        assert found == pytest.approx(later, abs=TOLERANCE, rel=TOLERANCE), name
    left, right = open_checkpoint(first), open_checkpoint(second)
    for name in left.names():
        torch.testing.assert_close(right.read(name), left.read(name), rtol=0, atol=1e-4)


def test_incomplete_checkpoints_of_a_killed_run_are_removed(recipe_file, tmp_path):
    folder = tmp_path / "run" / FOLDER
    (folder / ".ba2.partial").mkdir(parents=True)
    (folder / ".ba2.partial/__0_0.distcp").write_bytes(b"half")
    (folder / ".ba4.pt.partial").write_bytes(b"half")
    (folder / "ba6.pt").write_bytes(b"no manifest")
    (folder / "notes.txt").write_text("the user's own")
    run_here(recipe_file, "run.duration=4ba")
    assert sorted(path.name for path in folder.iterdir()) == ["ba4.json", "ba4.pt", "notes.txt"]


def test_a_new_run_does_not_start_in_an_old_directory(recipe_file, tmp_path):
    run_here(recipe_file, "run.duration=4ba")
    with pytest.raises(UserError, match=r"holds ba4.pt.*run.autoresume=false"):
        run_here(recipe_file, "run.duration=8ba", "run.autoresume=false")
