"""Importance, cut and recovery in one recipe."""

import json
import shutil

import pytest
import torch
from runs import run_here, series

from llmshearing.architecture.target import TargetSettings
from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.export.export import export
from llmshearing.export.oneshot import from_file, prune_oneshot
from llmshearing.huggingface.source import load_model, read_source

ONESHOT = "pruning.method=oneshot"


def weights(directory):
    return load_model(read_source(directory)).state_dict()


def test_a_run_equals_the_three_commands_with_the_same_scores(
    recipe_file, tiny_model, tiny_tree, tmp_path
):
    """`importance`, `prune-oneshot` and a run without a target."""
    lines = run_here(recipe_file, ONESHOT)
    scores = tmp_path / "scores"
    measure_importance(tiny_model, tiny_tree / "prune", out=scores)
    target = TargetSettings(**json.loads(recipe_file.read_text())["target"])
    prune_oneshot(tiny_model, tmp_path / "cut", target, from_file(scores), method="activation")
    given = json.loads(recipe_file.read_text())
    del given["target"]
    recipe_file.write_text(json.dumps(given))
    other = [f"model.path={tmp_path / 'cut'}", f"run.directory={tmp_path / 'other'}"]
    expected = run_here(recipe_file, *other)
    assert series(lines, "loss/train/total") == series(expected, "loss/train/total")
    made = [export(tmp_path / run, tmp_path / f"{run}-out") for run in ("run", "other")]
    assert made[0].shape == made[1].shape
    found, wanted = (weights(one.directory) for one in made)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_longer_run_continues_without_measuring_or_cutting_again(recipe_file, tmp_path):
    run_here(recipe_file, ONESHOT, "run.duration=4ba")
    made = [tmp_path / "run" / name for name in ("cut", "importance.safetensors")]
    times = [path.stat().st_mtime_ns for path in made]
    lines = run_here(recipe_file, ONESHOT)
    assert [path.stat().st_mtime_ns for path in made] == times
    assert len(series(lines, "loss/train/total")) == 8


def test_one_importance_file_serves_several_targets(recipe_file, tiny_model, tiny_tree, tmp_path):
    scores = tmp_path / "scores"
    measure_importance(tiny_model, tiny_tree / "prune", rows=24, out=scores)
    for hidden in (16, 24):
        run = tmp_path / str(hidden)
        given = [ONESHOT, f"pruning.importance={scores}", f"target.hidden={hidden}"]
        run_here(recipe_file, *given, f"run.directory={run}")
        assert not (run / "importance.safetensors").exists()
        assert read_source(run / "cut").table.source.hidden == hidden
        recorded = json.loads((run / "manifest.json").read_text())["losses"]
        assert set(recorded) == {"prose", "code", "letters"}


def test_the_first_held_out_loss_is_that_of_the_cut_model(recipe_file, tiny_tree, tmp_path):
    lines = run_here(recipe_file, ONESHOT, "run.duration=1ba", "run.eval_interval=1ba",
                     "optimizer.learning_rate=1e-12", "optimizer.warmup=0ba")  # fmt: skip
    expected = evaluate(tmp_path / "run" / "cut", tiny_tree / "eval")
    for name, loss in expected.domains.items():
        (found,) = series(lines, f"metrics/{name}/loss").values()
        assert found == pytest.approx(loss.loss, abs=1e-5)


def test_another_target_or_source_is_refused_in_the_same_run_directory(
    recipe_file, tiny_model, tmp_path
):
    run_here(recipe_file, ONESHOT)
    shutil.copytree(tiny_model, tmp_path / "model")
    for change in ("target.hidden=24", f"model.path={tmp_path / 'model'}"):
        with pytest.raises(UserError, match="of another source or target"):
            run_here(recipe_file, ONESHOT, change)


def test_a_budget_is_refused_and_a_shape_is_valid(recipe_file, capsys):
    assert not main(["validate", str(recipe_file), ONESHOT])
    assert "by oneshot" in capsys.readouterr().out
    given = json.loads(recipe_file.read_text())
    given["target"] = {"parameters": "20K"}
    recipe_file.write_text(json.dumps(given))
    assert main(["validate", str(recipe_file), ONESHOT]) == 2
    assert "found with pruning.method=oneshot" in capsys.readouterr().err


def test_phases_of_masks_do_not_limit_a_run_without_masks(recipe_file):
    late = ["pruning.warmup=99ba", "pruning.freeze=1ba"]
    assert not main(["validate", str(recipe_file), ONESHOT, *late])
    assert main(["validate", str(recipe_file), *late]) == 2


def test_a_plan_is_for_training_the_cut_model(recipe_file, tmp_path):
    plans = {}
    for method in ("oneshot", "masks"):
        file = tmp_path / f"{method}.json"
        given = ["plan", recipe_file, f"pruning.method={method}", "--gpu", "cpu", "--gpus", 1]
        assert not main(list(map(str, [*given, "--json", file])))
        plans[method] = json.loads(file.read_text())
    flops = {name: plan["schedule"]["flops_per_token"] for name, plan in plans.items()}
    assert flops["oneshot"] < flops["masks"] / 2
    assert plans["oneshot"]["model"]["parameters"] == plans["masks"]["model"]["exported_parameters"]


def test_validate_accepts_the_run_that_can_be_resumed(recipe_file, capsys):
    run_here(recipe_file, ONESHOT, "run.duration=4ba")
    assert not main(["validate", str(recipe_file), ONESHOT])
    assert "resumes from ba4" in capsys.readouterr().out


def test_the_teacher_of_a_distilled_run_is_the_source_before_the_cut(recipe_file, tmp_path):
    lines = run_here(recipe_file, ONESHOT, "distillation={}", "run.duration=2ba")
    assert series(lines, "loss/train/total")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["teacher"]["path"] == json.loads(recipe_file.read_text())["model"]["path"]
