"""The segments of a plan, and the exact shares within a segment."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import (
    SCALE,
    DomainScheduler,
    MixturePlan,
    quantised,
    reweighted,
)


def pick(weights, count):
    scheduler = DomainScheduler(weights, [0] * len(weights))
    return np.array([scheduler.pick() for _ in range(count)])


@settings(max_examples=200, deadline=None)
@example([1e-6, 1.0])
@example([1.0, 1.0, 1.0])
@example([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])
@example([0.2192, 0.0002, 0.0791, 0.0064, 0.0096, 0.001, 0.6845])
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_after_any_number_of_samples_every_count_is_within_one(raw):
    weights = quantised(np.array(raw) / sum(raw))
    count = 500
    picked = pick(weights, count)
    counts = np.cumsum(picked[:, None] == np.arange(len(raw)), axis=0)
    expected = np.arange(1, count + 1)[:, None] * np.array(weights) / SCALE
    # Tijdeman's bound, which is below one
    bound = 1 - 1 / max(2 * sum(w > 0 for w in weights) - 2, 1)
    assert np.abs(counts - expected).max() <= bound + 1e-6


def test_a_domain_of_weight_0_is_never_picked():
    assert set(pick(quantised([0.5, 0.0, 0.5]), 100)) == {0, 2}


def test_a_scheduler_resumes_from_a_deficit():
    weights = quantised([0.3, 0.3, 0.4])
    whole = pick(weights, 100)
    first = DomainScheduler(weights, [0] * 3)
    start = [first.pick() for _ in range(37)]
    second = DomainScheduler(weights, first.deficit)
    assert [*start, *(second.pick() for _ in range(63))] == whole.tolist()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda raw: sum(raw) > 1e-3))
def test_quantised_weights_sum_exactly(raw):
    weights = np.array(raw) / sum(raw)
    found = quantised(weights)
    assert sum(found) == SCALE
    assert np.abs(np.array(found) / SCALE - weights).max() < 2 / SCALE
    assert all(f == 0 for f, w in zip(found, weights, strict=True) if w == 0)


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.2, -0.2], [np.nan, 1.0]])
def test_weights_that_are_not_probabilities_are_refused(weights):
    with pytest.raises(UserError, match="expected"):
        MixturePlan.start(weights)


def test_a_segment_starts_at_its_first_sample():
    plan = MixturePlan.start([1.0, 0.0]).append(10, [0.5, 0.5]).append(20, [0.0, 1.0])
    assert [plan.at(n) for n in (0, 9, 10, 19, 20, 1000)] == [0, 0, 1, 1, 2, 2]
    assert MixturePlan.from_state(plan.state_dict()) == plan


def test_an_update_at_the_same_sample_replaces_the_segment():
    plan = MixturePlan.start([1.0, 0.0]).append(10, [0.5, 0.5]).append(10, [0.0, 1.0])
    assert [segment.first for segment in plan.segments] == [0, 10]
    assert plan.segments[1].weights == (0, SCALE)


def test_earlier_segments_cannot_be_changed():
    with pytest.raises(ValueError, match="after one at 10"):
        MixturePlan.start([1.0]).append(10, [1.0]).append(9, [1.0])


def test_planned_shares_are_means_over_the_samples():
    plan = MixturePlan.start([1.0, 0.0]).append(10, [0.5, 0.5]).append(30, [0.0, 1.0])
    np.testing.assert_allclose(plan.shares(0), [1, 0])
    np.testing.assert_allclose(plan.shares(10), [1, 0])
    np.testing.assert_allclose(plan.shares(20), [0.75, 0.25])
    np.testing.assert_allclose(plan.shares(40), [0.5, 0.5])


def test_available_domains_share_the_weights_of_the_others():
    weights = quantised([0.5, 0.3, 0.2])
    found = np.array(reweighted(weights, [True, False, True])) / SCALE
    np.testing.assert_allclose(found, [5 / 7, 0, 2 / 7], atol=1e-8)
    assert reweighted(weights, [False] * 3) == (0, 0, 0)
    assert sum(reweighted(quantised([0.0, 1.0]), [True, False])) == SCALE
