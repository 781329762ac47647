import json

import pytest
from runs import metrics, run_here, series

from llmshearing.callbacks.manifest import ManifestWriter
from llmshearing.config import load_recipe
from llmshearing.errors import UserError


def verdict_of(recipe_file):
    return json.loads((recipe_file.parent / "run" / "mask_report.json").read_text())


def test_a_settled_run_ends_with_exactly_the_model_it_trained(recipe_file):
    lines = run_here(recipe_file, "pruning.freeze=4ba", "pruning.warmup=2ba")
    verdict = verdict_of(recipe_file)
    assert verdict["frozen"]
    assert verdict["soft_loss"] == verdict["exact_loss"]
    assert verdict["axes"]["hidden"]["target"] == 16
    expected = series(lines, "pruning/expected/hidden")
    assert expected[7] == 16.0
    assert expected[2] != 16.0
    penalties = series(lines, "loss/train/lagrangian")
    assert penalties[7] == 0.0


def test_an_unsettled_run_is_told_what_the_cut_costs(recipe_file):
    run_here(recipe_file, "pruning.freeze=1dur", "pruning.warmup=2ba", "pruning.sharpness=1")
    verdict = verdict_of(recipe_file)
    assert not verdict["frozen"]
    # After 8 steps the masks are still almost open: as trained, the model is nearly the source.
    assert abs(verdict["soft_loss"] - verdict["exact_loss"]) > 1e-3
    told = " ".join(verdict["problems"])
    assert "hidden: expected size" in told
    assert "undecided" in told
    log = (recipe_file.parent / "run" / "log.txt").read_text()
    assert "verdict on the masks" in log
    assert verdict["problems"][0] in log


@pytest.mark.parametrize("freeze", ["1dur", "4ba"])
def test_all_is_told_before_the_last_checkpoint(recipe_file, monkeypatch, freeze):
    """A run killed after it counts as finished, whatever the interval of evaluations."""

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
    assert verdict_of(recipe_file)["exact_loss"] == pytest.approx(mean, rel=1e-6)
    manifest = json.loads((run / "checkpoints/ba8.json").read_text())
    assert manifest["losses_at"]["batch"] == 8


def test_a_run_without_masks_has_no_verdict(recipe_file):
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe_file.write_text(json.dumps(recipe))
    run_here(recipe_file, "run.duration=2ba", "run.eval_interval=2ba")
    assert not (recipe_file.parent / "run" / "mask_report.json").exists()


def test_a_sharpness_below_one_is_refused(recipe_file):
    with pytest.raises(UserError, match=r"pruning\.sharpness: found 0\.5, expected at least 1"):
        load_recipe(recipe_file, ["pruning.sharpness=0.5"])
