"""Exports during a run are those of its checkpoints."""

import pytest
import yaml
from runs import log_file, run_here, start_ranks
from safetensors.torch import load_file

from llmshearing.errors import UserError
from llmshearing.export.export import export

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_interval_and_the_end_are_exported(recipe_file, tmp_path):
    plain = run_here(recipe_file, f"run.directory={tmp_path / 'plain'}")
    keep = ("run.keep_checkpoints=-1", "run.checkpoint_interval=4ba")
    lines = run_here(recipe_file, "run.export_interval=3ba", *keep)
    run = tmp_path / "run"
    assert names(run / "exports") == ["ba3", "ba6", "ba8"]
    assert [line["metrics"].get("loss/train/ce") for line in lines] == [
        line["metrics"].get("loss/train/ce") for line in plain
    ]
    for step in (3, 8):  # in the middle, where no checkpoint is due, and at the end
        export(run / f"checkpoints/ba{step}.pt", tmp_path / f"ba{step}", allow_undecided=True)
        found = load_file(run / f"exports/ba{step}/model.safetensors")
        wanted = load_file(tmp_path / f"ba{step}/model.safetensors")
        assert all((found[name] == tensor).all() for name, tensor in wanted.items())
        assert found.keys() == wanted.keys()


def test_a_run_killed_before_its_export_makes_up_for_it(recipe_file, tmp_path):
    run_here(recipe_file, "run.duration=4ba", "run.checkpoint_interval=4ba")
    run_here(recipe_file, "run.duration=5ba", "run.export_interval=2ba")
    assert names(tmp_path / "run/exports") == ["ba4", "ba5"]


def test_a_budget_without_a_shape_yet_is_not_exported(recipe_file, tmp_path):
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["target"] = {"parameters": 30_000}
    recipe_file.write_text(yaml.safe_dump(recipe))
    run_here(recipe_file, "run.export_interval=4ba", "pruning.fix_shape=6ba")
    log = (tmp_path / "run/log.txt").read_text()
    assert "no export at step 4: the masks have not fixed their shape yet" in log
    assert names(tmp_path / "run/exports") == ["ba8"]


def test_an_export_that_cannot_be_written_ends_the_run_after_its_checkpoint(recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/exports").write_text("")
    with pytest.raises(UserError, match=r"cannot export .*exports/ba4"):
        run_here(recipe_file, "run.export_interval=4ba")
    assert (tmp_path / "run/checkpoints/ba4.json").is_file()


@pytest.mark.world_size(2)
def test_ranks_that_are_sharded_export_the_whole_model(recipe_file, tmp_path):
    words = [str(recipe_file), "run.export_interval=8ba", "parallelism=fsdp2"]
    ranks = start_ranks(2, tmp_path / "logs", words)
    for rank in ranks:
        rank.join(200)
    assert [rank.exitcode for rank in ranks] == [0, 0], log_file(tmp_path / "logs", 0).read_text()
    assert names(tmp_path / "run/exports") == ["ba8"]
    export(tmp_path / "run", tmp_path / "out", allow_undecided=True)
    found = load_file(tmp_path / "run/exports/ba8/model.safetensors")
    wanted = load_file(tmp_path / "out/model.safetensors")
    assert all((found[name] == tensor).all() for name, tensor in wanted.items())
