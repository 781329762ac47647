"""Where masks start: by importance where measuring it is cheap, and exactly at the source."""

import json
from pathlib import Path

import pytest
import torch
from runs import log_file, metrics, run_here, series, start_ranks

from llmshearing import building
from llmshearing.architecture.axes import Axis
from llmshearing.building import IMPORTANCE_ROWS, IMPORTANCE_SHARE, importance_plan
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checksums import record_file
from llmshearing.cli import main
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.export.export import export
from llmshearing.export.oneshot import kept_units
from llmshearing.huggingface.source import read_source
from llmshearing.preflight import resolve
from llmshearing.pruning.scores import load_scores

BY_IMPORTANCE = ("pruning.start=importance", "pruning.freeze=4ba", "pruning.warmup=2ba")
SCORES = "importance.safetensors"

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def run_of(recipe_file) -> Path:
    return recipe_file.parent / "run"


def test_a_run_scores_the_units_itself_and_keeps_the_file(recipe_file, tiny_model, tiny_tree):
    run_here(recipe_file, *BY_IMPORTANCE)
    run, table = run_of(recipe_file), read_source(tiny_model).table
    found = load_scores(run / SCORES, table)
    same = measure_importance(tiny_model, tiny_tree / "prune", rows=IMPORTANCE_ROWS[1])
    for axis, score in same.items():
        assert found[axis].numpy() == pytest.approx(score.numpy(), rel=1e-4), axis
    for manifest in (run / "manifest.json", run / "checkpoints/ba8.json"):
        assert RunManifest.read(manifest).importance == record_file(run / SCORES)
    text = (run / "log.txt").read_text()
    assert "masks start by the importance of the units, measured on 512 rows" in text
    assert "use llmshearing prune-oneshot, or 38 times the steps" in text


def test_the_first_step_trains_exactly_the_source(recipe_file):
    """Gates that follow scores would change every unit before anything is learned."""
    one = ("run.duration=1ba", "run.eval_interval=1ba", "pruning.importance_spread=3")
    by_importance = run_here(recipe_file, *one, "pruning.start=importance")
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe["run"]["directory"] += "-plain"
    recipe_file.write_text(json.dumps(recipe))
    plain = run_here(recipe_file, *one[:2])
    loss = "loss/train/ce"
    assert series(by_importance, loss)[1] == pytest.approx(series(plain, loss)[1], abs=1e-6)


def test_the_export_is_the_model_that_the_run_evaluated(recipe_file, tiny_tree, tmp_path):
    """Gates that start at 1 by scores have scales, which belong to the exported gates."""
    run_here(recipe_file, *BY_IMPORTANCE, "pruning.importance_spread=3")
    export(run_of(recipe_file), tmp_path / "out")
    rows = json.loads(recipe_file.read_text())["data"].get("eval_rows")
    found = evaluate(tmp_path / "out", tiny_tree / "eval", rows=rows)
    recorded = RunManifest.read(run_of(recipe_file) / "manifest.json").losses
    assert {n: d.loss for n, d in found.domains.items()} == pytest.approx(recorded, abs=1e-5)


def test_the_report_compares_with_the_one_shot_cut(recipe_file, tiny_model):
    run_here(recipe_file, *BY_IMPORTANCE)
    run, table = run_of(recipe_file), read_source(tiny_model).table
    report = json.loads((run / "mask_report.json").read_text())
    comparison, kept = report["comparison"], RunManifest.read(run / "manifest.json").target
    assert kept is not None
    best = kept_units(load_scores(run / SCORES, table), table, kept)
    export(run, run.parent / "out", allow_undecided=True)
    exported = json.loads((run.parent / "out" / "llmshearing.json").read_text())["kept"]
    for axis, units in best.items():
        pairs = zip(
            torch.tensor(exported[axis.value]).reshape(-1, units.shape[-1]).tolist(),
            units.reshape(-1, units.shape[-1]).tolist(),
            strict=True,
        )
        common = sum(len({*ours} & {*theirs}) for ours, theirs in pairs)
        assert comparison["common"][axis.value]["units"] == common
    assert comparison["importance_loss"] > 0
    log = (run / "log.txt").read_text()
    assert f"held-out loss of the source cut at once: {comparison['oneshot_loss']:.4f}" in log


def test_the_loss_of_the_cut_source_is_that_of_one_shot_pruning(
    recipe_file, tiny_model, tiny_tree, tmp_path
):
    run_here(recipe_file, *BY_IMPORTANCE)
    run = run_of(recipe_file)
    shape = ["--target", "hidden=16", "layers=2", "heads=2", "intermediate=24"]
    scores = ["--importance", str(run / SCORES)]
    main(["prune-oneshot", str(tiny_model), str(tmp_path / "cut"), *scores, *shape])
    mean = evaluate(tmp_path / "cut", tiny_tree / "eval").mean
    report = json.loads((run / "mask_report.json").read_text())
    assert report["comparison"]["oneshot_loss"] == pytest.approx(mean, abs=1e-5)


def test_a_resumed_run_has_the_same_start_scores_and_report(recipe_file, tmp_path):
    run_here(recipe_file, *BY_IMPORTANCE)
    whole = json.loads((run_of(recipe_file) / "mask_report.json").read_text())
    other = (f"run.directory={tmp_path / 'other'}", *BY_IMPORTANCE)
    run_here(recipe_file, *other, "run.duration=4ba")
    assert not (tmp_path / "other/checkpoints/ba8.pt").exists()
    run_here(recipe_file, *other)
    resumed = json.loads((tmp_path / "other" / "mask_report.json").read_text())
    assert resumed["comparison"]["oneshot_loss"] == whole["comparison"]["oneshot_loss"]
    assert resumed["comparison"]["common"].keys() == whole["comparison"]["common"].keys()


@pytest.mark.parametrize(
    ("duration", "start", "rows", "starts", "words"),
    [
        (100, "auto", 0, False, "would cost 1.3% of the run's operations, more than 1%"),
        (200, "auto", 48, True, "measured on 48 rows of all domains for 1.00%"),
        (9999, "auto", 512, True, "measured on 512 rows of all domains for 0.21%"),
        (9999, "uniform", 512, False, "alike, as pruning.start=uniform asks"),
        (100, "importance", 512, True, "measured on 512 rows of all domains for 21.33%"),
    ],
)
def test_importance_is_measured_where_it_costs_at_most_a_hundredth(
    recipe_file, duration, start, rows, starts, words
):
    given = [f"run.duration={duration}ba", f"pruning.start={start}"]
    plan = importance_plan(*resolve(recipe_file, given))
    assert (plan.rows, plan.starts) == (rows, starts)
    assert words in plan.reason
    assert start == "importance" or plan.share <= IMPORTANCE_SHARE


def test_masks_that_start_alike_are_compared_but_not_moved(recipe_file, monkeypatch):
    """The paper's method stays what it is, whatever is measured for the report."""
    unmeasured = run_here(recipe_file, "pruning.start=uniform")
    monkeypatch.setattr(building, "IMPORTANCE_ROWS", (1, 512))
    run = recipe_file.parent / "measured"
    measured = run_here(recipe_file, "pruning.start=uniform", f"run.directory={run}")
    for name in ("loss/train/ce", "loss/train/lagrangian", "pruning/expected/hidden"):
        assert series(measured, name) == series(unmeasured, name)
    assert not (run_of(recipe_file) / SCORES).exists()
    assert json.loads((run / "mask_report.json").read_text())["comparison"]["steps"] == 8


@pytest.mark.world_size(2)
def test_two_ranks_start_like_one_process(recipe_file, tmp_path):
    table, found = None, []
    for ranks, how in ((1, "ddp"), (2, "ddp"), (2, "fsdp2")):
        run = tmp_path / f"{how}-{ranks}"
        given = [f"run.directory={run}", f"parallelism={how}", *BY_IMPORTANCE, "run.duration=5ba"]
        processes = start_ranks(ranks, tmp_path / "logs", [str(recipe_file), *given])
        for process in processes:
            process.join(timeout=300)
        log = log_file(tmp_path / "logs", 0).read_text()
        assert [p.exitcode for p in processes] == [0] * ranks, log[-3000:]
        table = table or read_source(json.loads(recipe_file.read_text())["model"]["path"]).table
        found.append((load_scores(run / SCORES, table), metrics(run)))
    scores, lines = found[0]
    for other, other_lines in found[1:]:
        for axis in Axis:
            if axis in scores:
                assert other[axis].numpy() == pytest.approx(scores[axis].numpy(), rel=1e-4)
        for name in ("loss/train/ce", "pruning/expected/hidden", "metrics/prose/loss"):
            expected = series(lines, name)
            assert series(other_lines, name) == pytest.approx(expected, abs=1e-5, rel=1e-5), name
