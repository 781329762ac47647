"""The mask report of real runs, and when it is written."""

import json

import pytest
from runs import metrics, run_here, series

from llmshearing.callbacks.manifest_writer import ManifestWriter
from llmshearing.config import load_recipe
from llmshearing.errors import UserError


def report_of(recipe_file):
    return json.loads((recipe_file.parent / "run" / "mask_report.json").read_text())


def test_a_frozen_run_ends_with_exactly_the_model_it_trained(recipe_file):
    lines = run_here(recipe_file, "pruning.freeze=4ba", "pruning.warmup=2ba")
    report = report_of(recipe_file)
    assert report["frozen"]
    assert report["soft_loss"] == report["exact_loss"]
    assert report["axes"]["hidden"]["target"] == 16
    expected = series(lines, "pruning/expected/hidden")
    assert expected[7] == 16.0
    assert expected[2] != 16.0
    penalties = series(lines, "loss/train/lagrangian")
    assert penalties[7] == 0.0


def test_a_run_that_never_freezes_reports_what_the_cut_costs(recipe_file):
    run_here(recipe_file, "pruning.freeze=1dur", "pruning.warmup=2ba", "pruning.sharpness=1")
    report = report_of(recipe_file)
    assert not report["frozen"]
    # After 8 steps nearly all gates are open, so the model as trained is nearly the source.
    assert abs(report["soft_loss"] - report["exact_loss"]) > 1e-3
    problems = " ".join(report["problems"])
    assert "hidden: expected size" in problems
    assert "undecided" in problems
    log = (recipe_file.parent / "run" / "log.txt").read_text()
    assert "axis          target  expected  furthest  undecided" in log
    assert report["problems"][0] in log


@pytest.mark.parametrize("freeze", ["1dur", "4ba"])
def test_everything_is_written_before_the_last_checkpoint(recipe_file, monkeypatch, freeze):
    """A run killed after its last checkpoint counts as finished."""

    def killed(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(ManifestWriter, "fit_end", killed)
    given = ("run.eval_interval=3ba", "pruning.warmup=2ba", f"pruning.freeze={freeze}")
    with pytest.raises(RuntimeError, match="killed"):
        run_here(recipe_file, *given)
    run = recipe_file.parent / "run"
    assert (run / "checkpoints/ba8.json").is_file()
    assert (run / "mixture.yaml").is_file()
    losses = {n: series(metrics(run), f"metrics/{n}/loss") for n in ("prose", "code", "letters")}
    assert all(list(found) == [3, 6, 8] for found in losses.values())
    mean = sum(found[8] for found in losses.values()) / 3
    assert report_of(recipe_file)["exact_loss"] == pytest.approx(mean, rel=1e-6)
    manifest = json.loads((run / "checkpoints/ba8.json").read_text())
    assert manifest["losses_at"]["batch"] == 8


def test_a_run_without_masks_has_no_report(recipe_file):
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe_file.write_text(json.dumps(recipe))
    run_here(recipe_file, "run.duration=2ba", "run.eval_interval=2ba")
    assert not (recipe_file.parent / "run" / "mask_report.json").exists()


def test_a_sharpness_below_one_is_refused(recipe_file):
    with pytest.raises(UserError, match=r"pruning\.sharpness: found 0\.5, expected 1 or more"):
        load_recipe(recipe_file, ["pruning.sharpness=0.5"])
