"""Reading run directories."""

import json

import numpy as np
import pytest

from llmshearing.errors import UserError
from llmshearing.reports.run_directory import HELD_OUT, read_run, read_runs, short_names


def test_metrics_are_read_as_series_and_groups(make_run):
    run = read_run(make_run())
    assert list(run.group(HELD_OUT)) == ["python", "reference", "packages", "headers"]
    assert run.steps == 300
    assert run.planned_steps == 300
    assert run.tokens == 300 * 2048
    assert run.prunes
    assert list(run.group("pruning/expected/{}")) == ["hidden", "layer", "head", "intermediate"]
    loss = run.series("metrics/python/loss")
    assert loss.steps.tolist() == [0, 50, 100, 150, 200, 250, 300]
    assert run.series("metrics/nowhere/loss") is None


def test_the_mean_held_out_loss_needs_every_domain(make_run):
    directory = make_run()
    file = directory / "metrics.jsonl"
    partial = {"batch": 301, "tokens": 1, "seconds": 1.0, "metrics": {"metrics/python/loss": 9.0}}
    file.write_text(file.read_text() + json.dumps(partial) + "\n")
    run = read_run(directory)
    means = run.mean_held_out()
    assert means.steps[-1] == 300
    lasts = [run.series(f"metrics/{name}/loss").values[6] for name in run.group(HELD_OUT)]
    assert means.last == pytest.approx(np.mean(lasts))


@pytest.mark.parametrize("tail", ['{"batch": 305, "tok', '{"batch": 305}', "[1]", "\0\0"])
def test_an_incomplete_line_is_skipped(make_run, tail):
    directory = make_run()
    whole = read_run(directory).lines
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert read_run(directory).lines == whole


def test_damaged_masks_are_named_and_other_files_skipped(make_run):
    directory = make_run()
    whole = (directory / "masks/ba300.safetensors").read_bytes()
    (directory / "masks/bar.safetensors").write_bytes(whole[:100])
    (directory / "masks/.ba310.safetensors.host.1.partial").write_bytes(whole[:100])
    assert list(read_run(directory).masks) == [0, 300]
    (directory / "masks/ba310.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"ba310\.safetensors is not a whole safetensors file"):
        read_run(directory)


def test_a_run_that_has_just_started_is_empty(make_run, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text("run:\n  duration: 1ba\n")
    run = read_run(tmp_path / "new")
    assert (run.steps, run.tokens, run.mean_held_out()) == (0, 0, None)


def test_a_directory_without_run_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither metrics\.jsonl nor config\.yaml"):
        read_runs([tmp_path])


def test_short_names_are_distinct(tmp_path):
    paths = [tmp_path / "a/prune", tmp_path / "b/prune", tmp_path / "b/continue"]
    assert short_names(paths) == ["a/prune", "b/prune", "b/continue"]
    assert short_names(paths[1:]) == ["prune", "continue"]
    assert len(set(short_names([paths[0], paths[0]]))) == 2
