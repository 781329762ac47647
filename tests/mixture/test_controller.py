"""The decision of dynamic batch loading, without a trainer."""

import json
import logging

import numpy as np
import pytest

from llmshearing.errors import UserError
from llmshearing.mixture import policies
from llmshearing.mixture.controller import MixtureController
from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.policies import Limits
from llmshearing.mixture.sampler import DomainSource, Sampler
from llmshearing.mixture.settings import MixtureSettings

DOMAINS = ["cc", "wiki", "arxiv"]
START = np.array([0.5, 0.3, 0.2])
REFERENCES = np.array([2.0, 1.5, 1.4])
LOSSES = np.array([2.1, 1.9, 1.3])
TOTAL = 10_000


def controller(references=REFERENCES, agree=lambda weights: weights, **settings):
    given = MixtureSettings(**{"policy": "paper", "update_interval": "50ba", **settings})
    sources = [DomainSource(name, 1000, 10) for name in DOMAINS]
    sampler = Sampler(sources, MixturePlan.start(START), seed=17)
    sizes = {"total_samples": TOTAL, "global_batch": 16, "row_tokens": 256}
    return MixtureController(given, sampler, START, references, **sizes, agree=agree)


def test_an_update_follows_the_policy():
    control = controller()
    control.observe(800, LOSSES)
    update = control.update(50, 800)
    expected = policies.update("paper", START, LOSSES, REFERENCES, Limits.none(START))
    np.testing.assert_array_equal(update.after, expected)
    np.testing.assert_array_equal(update.before, START)
    np.testing.assert_array_equal(control.weights, expected)


@pytest.mark.parametrize("policy", ["paper", "constant"])
def test_an_update_changes_the_plan_behind_the_batches_that_may_have_been_read(policy):
    control = controller(policy=policy, prefetch=4)
    control.observe(800, LOSSES)
    control.update(50, 800)
    firsts = [segment.first for segment in control.sampler.plan.segments]
    assert firsts == ([0, 800 + 4 * 16] if policy == "paper" else [0])
    control.update(100, 700)  # a plan only grows at its end
    assert control.sampler.plan.segments[-1].first == firsts[-1]


def test_the_running_metrics_leave_out_the_loss_of_an_absent_domain():
    control = controller()
    control.sampler.take(16)
    metrics = control.running_metrics(16, np.array([4.0, 0.0, 3.0]), np.array([2.0, 0.0, 1.0]))
    assert metrics["mixture/train_loss/cc"] == 2.0
    assert "mixture/train_loss/wiki" not in metrics
    assert metrics["mixture/planned_share/wiki"] == pytest.approx(0.3)
    assert metrics["mixture/tokens/cc"] == 8 * 256
    assert control.mixture(16)["weights"] == dict(zip(DOMAINS, START, strict=True))


def test_updates_are_due_at_each_interval_from_the_first_on():
    control = controller(first_update=2)
    assert [step for step in range(260) if control.is_due(step)] == [100, 150, 200, 250]
    control.observe(1600, LOSSES)
    control.update(100, 1600)
    assert not control.is_due(100)
    assert control.is_due(150)


def test_without_losses_there_is_no_update():
    control = controller()
    assert control.update(50, 800) is None
    assert control.is_due(50)


def test_all_ranks_agree_on_the_new_weights():
    agreed = np.array([0.1, 0.1, 0.8])
    control = controller(agree=lambda weights: agreed)
    control.observe(800, LOSSES)
    np.testing.assert_array_equal(control.update(50, 800).after, agreed)
    np.testing.assert_array_equal(control.weights, agreed)


def test_constant_weights_are_reported_without_references():
    control = controller(references=None, policy="constant")
    control.observe(800, LOSSES)
    update = control.update(50, 800)
    np.testing.assert_array_equal(update.after, START)
    assert update.references is None
    assert set(update.metrics()) == {
        f"mixture/{kind}/{name}" for kind in ("weight", "loss") for name in DOMAINS
    }


def test_dro_aims_at_extrapolated_losses_without_references():
    control = controller(references=None, policy="dro")
    for sample, loss in ((100, 3.0), (200, 2.5), (300, 2.3), (400, 2.2), (500, 2.15)):
        control.observe(sample, np.array([loss, 2 * loss, 3.0]))
    update = control.update(50, 800)
    np.testing.assert_array_equal(update.references, control.history.extrapolate(TOTAL))
    limits = Limits.none(START)
    expected = policies.update("dro", START, update.losses, update.references, limits)
    np.testing.assert_array_equal(update.after, expected)
    assert update.plateaued == []


def test_mean_training_losses_keep_the_last_loss_of_an_absent_domain():
    control = controller()
    assert control.observe_sums(800, np.array([42.0, 38.0, 0.0]), np.array([20.0, 20.0, 0.0]))
    np.testing.assert_allclose(control.losses, [2.1, 1.9, REFERENCES[2]])
    assert control.observe_sums(1600, np.array([0.0, 30.0, 1.3]), np.array([0.0, 20.0, 1.0]))
    np.testing.assert_allclose(control.losses, [2.1, 1.5, 1.3])


def test_training_losses_are_collected_until_every_domain_is_known():
    control = controller(references=None, policy="constant")
    assert not control.observe_sums(800, np.array([42.0, 38.0, 0.0]), np.array([20.0, 20.0, 0.0]))
    assert control.losses is None
    assert control.observe_sums(1600, np.array([84.0, 76.0, 13.0]), np.array([40.0, 40.0, 10.0]))
    np.testing.assert_allclose(control.losses, [2.1, 1.9, 1.3])


def test_the_log_names_a_domain_that_stops_improving():
    control = controller(patience=1)
    lines = []
    for step in (50, 100):
        control.observe(16 * step, LOSSES - np.array([0.001 * step, 0, 0]))
        lines = list(control.update(step, 16 * step).lines())
    levels = [level for level, _ in lines]
    assert levels == [logging.INFO, logging.INFO, logging.WARNING, logging.INFO]
    assert (
        "domain wiki stays 0.4000 above its reference, no closer than 1 updates ago" in lines[2][1]
    )
    assert lines[0][1].endswith("loss 2.0000, reference 2.0000, excess +0.0000")


def test_metrics_are_named_by_domain():
    control = controller()
    control.observe(800, LOSSES)
    update = control.update(50, 800)
    metrics = update.metrics()
    assert metrics["mixture/weight/wiki"] == update.after[1]
    assert metrics["mixture/loss/wiki"] == LOSSES[1]
    assert metrics["mixture/reference/wiki"] == REFERENCES[1]
    assert metrics["mixture/excess/wiki"] == pytest.approx(0.4)
    assert len(metrics) == 12


@pytest.mark.parametrize("policy", ["paper", "released", "dro", "constant"])
def test_a_resumed_controller_makes_the_same_updates(policy):
    references = None if policy == "dro" else REFERENCES
    whole = controller(references, policy=policy, patience=2)
    resumed = controller(references, policy=policy, patience=2)
    rng = np.random.default_rng(0)
    for step in range(50, 500, 50):
        losses = LOSSES + rng.uniform(0, 0.2, 3)
        updates = []
        for control in (whole, resumed):
            control.observe(16 * step, losses)
            updates.append(control.update(step, 16 * step))
        np.testing.assert_array_equal(updates[0].after, updates[1].after)
        assert updates[0].plateaued == updates[1].plateaued
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = controller(references, policy=policy, patience=2)
        resumed.load_state_dict(state)
        assert not resumed.is_due(step)


def test_a_loss_that_is_not_finite_names_its_domain():
    control = controller()
    control.observe_held_out(7, 112, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(control.losses, [1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="found held-out loss nan of domain wiki at step 7"):
        control.observe_held_out(7, 112, [1.0, float("nan"), 3.0])


def test_held_out_losses_are_checked_but_not_followed_if_training_losses_are_the_signal():
    control = controller(signal="train")
    control.observe_held_out(7, 112, [1.0, 2.0, 3.0])
    assert control.losses is None
    with pytest.raises(UserError, match="found held-out loss inf of domain cc"):
        control.observe_held_out(7, 112, [float("inf"), 2.0, 3.0])
