"""The best candidates after a short training: which, for how long, and what it changes."""

import json

import pytest
from runs import run_here

from llmshearing.errors import UserError
from llmshearing.preflight import resolve
from llmshearing.search.command import Recovery, run
from llmshearing.search.recovery import halvings

SMALL = [
    "data.global_batch=4",
    "data.microbatch=4",
    "data.workers=0",
    "optimizer.learning_rate=0.01",
]


@pytest.mark.parametrize(
    ("finalists", "steps", "rounds"),
    [
        (8, 50, [(8, 12), (4, 25), (2, 50)]),
        (7, 50, [(4, 25), (2, 50)]),
        (2, 50, [(2, 50)]),
        (1, 50, [(1, 50)]),
        (8, 1, [(8, 1), (4, 1), (2, 1)]),
    ],
)
def test_each_round_trains_half_as_many_shapes_for_twice_as_long(finalists, steps, rounds):
    assert halvings(finalists, steps) == rounds


@pytest.fixture(scope="module")
def recovered(found, tiny_model, tiny_tree, target, settings):
    """The finished search with a recovery of its best shapes."""
    _, out = found
    recovery = Recovery("4ba", finalists=4)
    run(tiny_model, tiny_tree, target, out, settings, recovery, SMALL)
    return out, json.loads((out / "results.json").read_text())


def test_the_best_of_each_round_are_trained_on(found, recovered):
    result, _ = found
    _, stored = recovered
    rounds = [{one["name"]: one["recovered"][n] for one in stored["candidates"]} for n in range(2)]
    first, last = ({n: loss for n, loss in one.items() if loss is not None} for one in rounds)
    assert set(first) == set(result.ranking[:4])
    assert set(last) == set(sorted(first, key=first.__getitem__)[:2])
    assert stored["candidates"][0]["name"] == min(last, key=last.__getitem__)
    assert all(loss < result.scores[name].loss for name, loss in last.items())
    assert -1 <= stored["correlations"][0]["loss"] <= 1


def test_a_loss_after_recovery_is_that_of_a_run_of_the_recipe(found, recovered, tmp_path):
    result, _ = found
    out, stored = recovered
    best = stored["candidates"][0]
    _, inputs = resolve(out / "best.yaml")
    assert inputs.target == result.candidates[best["name"]].shape
    given = ["run.duration=4ba", "run.eval_interval=4ba", f"run.directory={tmp_path / 'run'}"]
    run_here(out / "best.yaml", *given)
    losses = json.loads((tmp_path / "run" / "manifest.json").read_text())["losses"]
    assert sum(losses.values()) / len(losses) == pytest.approx(best["recovered"][1], abs=1e-9)


def test_trainings_are_kept_without_their_weights_and_not_repeated(
    recovered, tiny_model, tiny_tree, target, settings
):
    out, stored = recovered
    assert not list(out.glob("recovery/*/cut")) + list(out.glob("recovery/*/checkpoints"))
    before = (out / "scores-0.jsonl").read_bytes()
    run(tiny_model, tiny_tree, target, out, settings, Recovery("4ba", finalists=4), SMALL)
    assert (out / "scores-0.jsonl").read_bytes() == before
    assert json.loads((out / "results.json").read_text()) == stored
    with pytest.raises(UserError, match="trainings with another recovery"):
        run(tiny_model, tiny_tree, target, out, settings, Recovery("4ba", 4), SMALL[:3])
    with pytest.raises(UserError, match="--recovery has 1 error"):
        run(tiny_model, tiny_tree, target, out, settings, Recovery("4ba", 4), ["data.rows=1"])
