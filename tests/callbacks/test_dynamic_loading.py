"""Dynamic batch loading inside the real trainer, on a model of a few thousand parameters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from recording import run_recorded, seen
from runs import metrics, series

from llmshearing import preflight
from llmshearing.checkpoints.safe_reading import load_trainer_state
from llmshearing.errors import UserError
from llmshearing.mixture.policies import Limits, update
from llmshearing.train import main

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

DOMAINS = ["prose", "code", "letters"]
REFERENCES = {"prose": 4.0, "code": 4.9, "letters": 3.0}


@pytest.fixture
def recipe(recipe_file, tmp_path):
    """Updates every second step by the paper's rule, evaluated every second step."""
    references = tmp_path / "references.yaml"
    references.write_text(yaml.safe_dump({"losses": REFERENCES}))
    given = json.loads(recipe_file.read_text())
    given["run"] |= {"eval_interval": "2ba", "checkpoint_interval": "1ba", "keep_checkpoints": -1}
    given["data"] |= {"eval_rows": 8}
    given["mixture"] = {
        "policy": "paper",
        "references": str(references),
        "update_interval": "2ba",
        "prefetch": 2,
    }
    recipe_file.write_text(json.dumps(given))
    return recipe_file


def run(recipe, *overrides):
    """Run to the end; return the metrics and the batches."""
    checked, inputs = preflight.resolve(recipe, overrides)
    run_recorded(checked, inputs)
    directory = Path(checked.run.directory)
    return metrics(directory), seen(directory)


def by_domain(lines, name):
    """{step: values [k]} of a metric with a domain at its end."""
    columns = [series(lines, f"{name}/{domain}") for domain in DOMAINS]
    return {step: np.array([column[step] for column in columns]) for step in columns[0]}


def test_updates_follow_the_policy_and_take_effect_after_the_prefetch(recipe):
    lines, batches = run(recipe)
    weights, losses = by_domain(lines, "mixture/weight"), by_domain(lines, "mixture/loss")
    assert list(weights) == [2, 4, 6, 8]
    before = next(iter(by_domain(lines, "mixture/planned_share").values()))
    references = np.array([REFERENCES[name] for name in DOMAINS])
    for step, after in weights.items():
        expected = update("paper", before, losses[step], references, Limits.none(before))
        np.testing.assert_allclose(after, expected, atol=1e-6)  # the first ones are quantised
        before = after
    # each segment's counts are within one of its weights
    segments = [(0, 4, next(iter(by_domain(lines, "mixture/planned_share").values())))]
    segments += [(4, 6, weights[2]), (6, 8, weights[4])]
    for first, last, planned in segments:
        domains = [row[1] for step in range(first, last) for row in batches[step]]
        counts = np.bincount(domains, minlength=3)
        assert (np.abs(counts - planned * len(domains)) <= 1 + 1e-6).all()
    assert [row[0] for step in sorted(batches) for row in batches[step]] == list(range(64))


def test_losses_and_shares_are_logged(recipe):
    lines, batches = run(recipe)
    assert by_domain(lines, "mixture/reference")[2].tolist() == list(REFERENCES.values())
    excess = by_domain(lines, "mixture/loss")[4] - by_domain(lines, "mixture/reference")[4]
    np.testing.assert_allclose(by_domain(lines, "mixture/excess")[4], excess)
    held_out = [series(lines, f"metrics/{name}/loss")[4] for name in DOMAINS]
    np.testing.assert_allclose(by_domain(lines, "mixture/loss")[4], held_out, rtol=1e-6)
    counts = np.bincount([row[1] for step in range(5) for row in batches[step]], minlength=3)
    np.testing.assert_allclose(by_domain(lines, "mixture/share")[5], counts / 40)
    np.testing.assert_array_equal(by_domain(lines, "mixture/tokens")[5], counts * 32)


def test_training_losses_are_logged_for_the_domains_of_the_step(recipe):
    lines, batches = run(recipe, "data.global_batch=2", "data.microbatch=2")
    absent = 0
    for line in lines:
        domains = {row[1] for row in batches[line["batch"] - 1]}
        for number, name in enumerate(DOMAINS):
            known = f"mixture/train_loss/{name}" in line["metrics"]
            assert known == (number in domains)
            absent += not known
            assert not known or 3 < line["metrics"][f"mixture/train_loss/{name}"] < 7
    assert absent > 0


def test_the_loss_of_a_step_is_the_mean_over_its_domains(recipe):
    lines, batches = run(recipe)
    for line in lines:
        counts = np.bincount([row[1] for row in batches[line["batch"] - 1]], minlength=3)
        losses = [line["metrics"].get(f"mixture/train_loss/{name}", 0.0) for name in DOMAINS]
        mean = (counts * losses).sum() / counts.sum()
        assert line["metrics"]["loss/train/ce"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    "loading",
    [
        pytest.param(("mixture.policy=paper",), marks=pytest.mark.slow),
        pytest.param(("mixture.policy=dro", "mixture.references="), marks=pytest.mark.slow),
        ("mixture.policy=released", "mixture.signal=train", "mixture.update_interval=3ba"),
    ],
)
def test_a_resumed_run_with_other_workers_is_the_uninterrupted_run(recipe, tmp_path, loading):
    whole_lines, whole = run(recipe, *loading)
    for step, workers in ((1, 0), (3, 2), (5, 1)):
        resumed = tmp_path / f"resumed{step}"
        (resumed / "checkpoints").mkdir(parents=True)
        for suffix in (".pt", ".json"):
            shutil.copy(tmp_path / f"run/checkpoints/ba{step}{suffix}", resumed / "checkpoints")
        lines, batches = run(
            recipe, *loading, f"run.directory={resumed}", f"data.workers={workers}"
        )
        assert batches == {n: rows for n, rows in whole.items() if n >= step}
        for name in ("mixture/weight", "mixture/train_loss"):
            for domain in DOMAINS:
                expected = series(whole_lines, f"{name}/{domain}")
                found = series(lines, f"{name}/{domain}")
                assert found == {n: v for n, v in expected.items() if n > step}


def test_the_state_in_a_checkpoint_is_plain_data(recipe, tmp_path):
    run(recipe, "run.duration=2ba")
    state = load_trainer_state(tmp_path / "run/checkpoints/ba2.pt")["state"]
    for part in (state["dataset_state"]["train"], dict(state["callbacks"])["DynamicLoading"]):
        assert json.loads(json.dumps(part)) == part


def test_an_update_needs_no_evaluation_at_the_same_step(recipe):
    lines, _ = run(recipe, "run.eval_interval=4ba", "mixture.update_interval=3ba")
    assert list(by_domain(lines, "mixture/weight")) == [6]  # at 3 nothing was measured yet
    np.testing.assert_allclose(
        by_domain(lines, "mixture/loss")[6],
        [series(lines, f"metrics/{name}/loss")[4] for name in DOMAINS],
    )


def test_every_update_is_logged_at_any_log_interval(recipe):
    given = ("mixture.signal=train", "mixture.update_interval=3ba", "run.log_interval=5ba")
    lines, _ = run(recipe, *given, "run.eval_interval=8ba", "run.checkpoint_interval=8ba")
    assert list(by_domain(lines, "mixture/weight")) == [3, 6]


def test_first_update_delays_the_first_update(recipe):
    lines, _ = run(recipe, "mixture.first_update=3")
    assert list(by_domain(lines, "mixture/weight")) == [6, 8]


def test_the_training_loss_can_be_the_signal(recipe):
    lines, batches = run(recipe, "mixture.signal=train", "run.eval_interval=8ba")
    losses = by_domain(lines, "mixture/loss")
    assert list(losses) == [2, 4, 6, 8]
    for number, name in enumerate(DOMAINS):
        steps = [series(lines, f"mixture/train_loss/{name}").get(n) for n in (3, 4)]
        counts = [[row[1] for row in batches[n - 1]].count(number) for n in (3, 4)]
        if sum(counts):
            mean = sum(c * s for c, s in zip(counts, steps, strict=True) if c) / sum(counts)
            assert losses[4][number] == pytest.approx(mean, abs=1e-6)


def test_a_run_can_start_from_the_mixture_file_of_another(recipe, tmp_path):
    lines, batches = run(recipe)
    mixture = yaml.safe_load((tmp_path / "run/mixture.yaml").read_text())
    np.testing.assert_allclose(
        [mixture["weights"][name] for name in DOMAINS], by_domain(lines, "mixture/weight")[8]
    )
    counts = np.bincount([row[1] for rows in batches.values() for row in rows], minlength=3)
    np.testing.assert_allclose([mixture["shares"][name] for name in DOMAINS], counts / 64)
    settings = ("mixture.policy=constant", "mixture.references=")
    for what, expected in (("weights", mixture["weights"]), ("shares", mixture["shares"])):
        again, _ = run(
            recipe,
            *settings,
            f"run.directory={tmp_path}/{what}",
            "run.duration=2ba",
            f"mixture.start_from={tmp_path}/run/mixture.yaml",
            f"mixture.start_with={what}",
        )
        found = dict(zip(DOMAINS, by_domain(again, "mixture/weight")[2], strict=True))
        assert found == pytest.approx(expected)


def test_a_run_ends_well_when_its_data_is_used_up(recipe, tmp_path):
    lines, batches = run(recipe, "mixture.used_up=stop", "run.duration=1000ba", "data.eval_rows=2",
                         "data.global_batch=32", "data.microbatch=32",
                         "run.checkpoint_interval=1000ba", "run.eval_interval=1000ba")  # fmt: skip
    assert 10 < len(batches) < 1000
    assert (tmp_path / "run/mixture.yaml").is_file()
    assert "is used up" in (tmp_path / "run/log.txt").read_text()
    passes = yaml.safe_load((tmp_path / "run/mixture.yaml").read_text())["passes"]
    assert max(passes.values()) > 0.9
    assert max(passes.values()) <= 1
    assert lines[-1]["batch"] == len(batches)


def test_a_run_whose_data_was_used_up_resumes_with_more_passes(recipe, tmp_path):
    """It reads the samples of a run that had as many passes from the start."""
    large = ("run.duration=24ba", "data.eval_rows=2", "data.global_batch=32", "data.microbatch=32",
             "run.eval_interval=24ba", "run.checkpoint_interval=7ba", "mixture.policy=constant",
             "mixture.references=", "mixture.used_up=stop")  # fmt: skip
    _, whole = run(recipe, *large, "mixture.max_passes=4", f"run.directory={tmp_path}/whole")
    _, first = run(recipe, *large)
    assert 10 < len(first) < len(whole)
    for duration in ("22ba", "24ba"):  # resumed twice, the second time in the middle of an epoch
        lines, batches = run(recipe, *large, "mixture.max_passes=4", f"run.duration={duration}")
    assert batches == whole
    assert lines[-1]["batch"] == 24


def test_data_too_small_for_one_batch_is_refused(recipe_file, capfd):
    given = ("mixture.used_up=stop", "data.global_batch=1024", "data.microbatch=32")
    assert main([str(recipe_file), *given]) == 2
    told = capfd.readouterr().err
    assert "found too few rows for one batch of 1024" in told
    assert "Traceback" not in told


def test_the_table_of_expected_use_is_logged(recipe, tmp_path):
    run(recipe, "run.duration=1ba")
    text = (tmp_path / "run/log.txt").read_text()
    assert "use of the data at the current weights" in text
    assert all(f"\n{name} " in text for name in DOMAINS)


def test_a_warning_names_a_domain_that_stops_improving(recipe, tmp_path):
    still = ("target=null", "optimizer.learning_rate=1e-15", "mixture.policy=constant")
    run(recipe, "mixture.patience=1", *still)
    text = (tmp_path / "run/log.txt").read_text()
    assert "no closer than 1 updates ago" in text
    assert "domain letters stays " in text


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(recipe):
    with pytest.raises(UserError, match=r"not finite at step \d+, on rank 0 in .*\(samples \d+"):
        run(
            recipe, "optimizer.learning_rate=1e30", "optimizer.clip_norm=0", "run.eval_interval=8ba"
        )


def test_references_that_do_not_fit_are_refused_before_the_run(recipe, tmp_path):
    (tmp_path / "references.yaml").write_text("losses: {prose: 1.0, code: 1.0}")
    with pytest.raises(UserError, match="no entry for letters"):
        run(recipe)
