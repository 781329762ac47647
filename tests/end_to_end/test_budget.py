"""A number of parameters as the target: the masks choose the shape."""

import json

import pytest
from runs import run_here, series
from safetensors.torch import load_file

from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import UserError
from llmshearing.export.export import export

BUDGET = 14_000  # of the 21,472 of the source
SETTINGS = (
    "pruning.warmup=2ba",
    "pruning.fix_shape=4ba",
    "pruning.init_log_alpha=2",
    "run.duration=8ba",
)


def trained(line):
    """A line's metrics without the times."""
    return {name: x for name, x in line["metrics"].items() if not name.startswith("throughput")}


@pytest.fixture
def budget_recipe(recipe_file):
    recipe = json.loads(recipe_file.read_text())
    recipe["target"] = {"parameters": str(BUDGET), "multiple_of": {"hidden": 4, "intermediate": 8}}
    recipe_file.write_text(json.dumps(recipe))
    return recipe_file


def test_the_exported_shape_is_within_the_budget_and_fixed_at_fix_shape(budget_recipe, tmp_path):
    lines = run_here(budget_recipe, *SETTINGS)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["target"]["hidden"] % 4 == manifest["target"]["intermediate"] % 8 == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"the budget's shape: Shape(hidden={manifest['target']['hidden']}," in log
    result = export(tmp_path / "run", tmp_path / "out")
    assert result.parameters <= BUDGET
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in weights.values()) == result.parameters
    targets = series(lines, "pruning/target/hidden")
    assert targets[3] == 32
    assert targets[5] == manifest["target"]["hidden"]


def test_a_resumed_run_keeps_the_fixed_shape(budget_recipe, tmp_path):
    whole = run_here(budget_recipe, *SETTINGS, "run.keep_checkpoints=-1")
    for interval in ("3ba", "6ba"):  # before and after the shape is fixed
        parts = (f"run.directory={tmp_path}/{interval}", f"run.checkpoint_interval={interval}")
        run_here(budget_recipe, *SETTINGS, *parts)
        folder = tmp_path / interval / "checkpoints"
        for late in folder.glob("ba8.*"):
            late.unlink()
        again = run_here(budget_recipe, *SETTINGS, *parts)
        assert trained(again[-1]) == trained(whole[-1])


def test_before_fix_shape_only_the_number_of_parameters_is_constrained(budget_recipe, tmp_path):
    run_here(budget_recipe, *SETTINGS, "run.checkpoint_interval=3ba", "run.keep_checkpoints=-1")
    early = tmp_path / "run" / "checkpoints" / "ba3.pt"
    assert open_checkpoint(early).read("masks.chosen").tolist() == [0, 0, 0, 0]
    assert json.loads(early.with_suffix(".json").read_text())["target"] is None
    with pytest.raises(UserError, match="has not fixed its shape yet"):
        export(early, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_choose_a_shape_from_importance_under_distillation(budget_recipe, tmp_path):
    """As in `yamls/prune/smollm2-135m-to-50m-budget.yaml`."""
    given = (*SETTINGS, "pruning.start=importance")
    logits = {}
    for weight in (0.0, 1.0):
        run = tmp_path / f"weight-{weight}"
        lines = run_here(
            budget_recipe, *given, f"distillation.weight={weight}", f"run.directory={run}"
        )
        logits[weight] = open_checkpoint(run).mask_logits()
    divergence = series(lines, "loss/train/divergence")
    assert divergence[1] == pytest.approx(0.0, abs=1e-6)  # the gates start at 1: it is the teacher
    assert divergence[8] > 1e-3
    for axis, found in logits[1.0].items():
        assert not found.equal(logits[0.0][axis])
    assert export(run, tmp_path / "out").parameters <= BUDGET
    comparison = json.loads((run / "mask_report.json").read_text())["comparison"]
    assert comparison["oneshot_loss"] is None  # before the first step there was no shape
    assert comparison["importance_loss"] > 0
