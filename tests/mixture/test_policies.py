"""Policies against worked examples, their bounds and their errors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llmshearing.errors import UserError
from llmshearing.mixture.policies import POLICIES, Limits, bounded, update

DOMAINS = ("cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4-rp")
START = np.array([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])
REFERENCES = np.array([1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251])
WIKI = DOMAINS.index("wiki")


def gap(size: float) -> np.ndarray:
    """Losses at the references, except for wiki."""
    losses = REFERENCES.copy()
    losses[WIKI] += size
    return losses


def test_paper_on_a_worked_example():
    losses = np.array([2.0, 1.0, 3.0])
    references = np.array([1.5, 1.25, 3.0])
    weights = np.array([0.5, 0.3, 0.2])
    found = update("paper", weights, losses, references, Limits.none(weights))
    raw = np.array([0.5 * np.exp(0.5), 0.3, 0.2])
    np.testing.assert_allclose(found, raw / raw.sum(), rtol=0, atol=1e-12)


def test_released_on_a_worked_example():
    losses = np.array([2.0, 1.0, 3.0])
    references = np.array([1.5, 1.25, 3.0])
    weights = np.array([0.5, 0.3, 0.2])
    found = update("released", weights, losses, references, Limits.none(weights))
    logits = np.log(weights) + losses - references
    softmax = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found, (1 - 1e-4) * softmax + 1e-4 / 3, rtol=0, atol=1e-12)


def test_under_a_constant_excess_a_domain_takes_over():
    weights = START
    for _ in range(60):
        weights = update("paper", weights, gap(0.1), REFERENCES, Limits.none(START))
    odds = 0.045 / 0.955 * np.exp(6.0)
    assert weights[WIKI] == pytest.approx(odds / (1 + odds), abs=1e-12)
    assert round(weights[WIKI], 2) == 0.95


def test_a_ceiling_stops_a_domain_and_the_others_keep_their_ratios():
    ceiling = np.ones(7)
    ceiling[WIKI] = 0.1
    limits = replace(Limits.none(START), ceiling=ceiling)
    weights = START
    for _ in range(60):
        weights = update("paper", weights, gap(0.1), REFERENCES, limits)
    assert weights[WIKI] == pytest.approx(0.1, abs=1e-12)
    others = np.arange(7) != WIKI
    expected = START[others] / START[others].sum() * 0.9
    np.testing.assert_allclose(weights[others], expected, atol=1e-12)


@pytest.mark.parametrize("policy", ["paper", "released"])
def test_eta_scales_the_step_of_its_domain(policy):
    eta = np.ones(7)
    eta[WIKI] = 0.5
    slow = update(policy, START, gap(0.2), REFERENCES, replace(Limits.none(START), eta=eta))
    np.testing.assert_allclose(
        slow, update(policy, START, gap(0.1), REFERENCES, Limits.none(START)), atol=1e-12
    )


def test_a_share_of_the_prior_is_mixed_in():
    limits = replace(Limits.none(START), prior_share=0.25)
    now = np.roll(START, 1)
    plain = update("paper", now, gap(1.0), REFERENCES, Limits.none(START))
    mixed = update("paper", now, gap(1.0), REFERENCES, limits)
    np.testing.assert_allclose(mixed, 0.75 * plain + 0.25 * START, atol=1e-12)


def test_constant_keeps_the_weights():
    found = update("constant", START, gap(5.0), REFERENCES, Limits.none(START))
    np.testing.assert_array_equal(found, START)


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds")  # SciPy for Python 3.10
@pytest.mark.parametrize("radius", [0.01, 0.1, 1.0])
def test_dro_gives_the_worst_mixture_within_its_radius(radius):
    rng = np.random.default_rng(5)
    excess = rng.normal(0, 0.3, 7)
    limits = replace(Limits.none(START), radius=radius, floor=np.full(7, 0.005))
    found = update("dro", START, REFERENCES + excess, REFERENCES, limits)
    assert ((found - START) ** 2 / START).sum() <= radius * (1 + 1e-6)
    best = minimize(
        lambda q: -q @ excess,
        START,
        bounds=[(0.005, 1)] * 7,
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "ineq", "fun": lambda q: radius - ((q - START) ** 2 / START).sum()},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert found @ excess == pytest.approx(-best.fun, abs=1e-6)


def test_dro_weighs_the_excess_of_each_domain_by_its_eta():
    excess, eta = np.linspace(0.1, 0.7, 7), np.array([3.0, 1, 1, 1, 1, 1, 0.2])
    limits = replace(Limits.none(START), eta=eta)
    found = update("dro", START, REFERENCES + excess, REFERENCES, limits)
    scaled = update("dro", START, REFERENCES + eta * excess, REFERENCES, Limits.none(START))
    np.testing.assert_allclose(found, scaled, atol=1e-12)
    plain = update("dro", START, REFERENCES + excess, REFERENCES, Limits.none(START))
    assert found[6] < START[6] < plain[6]


def test_dro_gives_the_prior_if_all_excess_losses_are_equal():
    found = update("dro", np.full(7, 1 / 7), REFERENCES + 0.5, REFERENCES, Limits.none(START))
    np.testing.assert_allclose(found, START, atol=1e-12)


weight_lists = st.lists(st.floats(0.001, 1), min_size=2, max_size=9)


@settings(max_examples=200, deadline=None)
@given(weight_lists, st.data())
def test_every_policy_stays_within_bounds(raw, data):
    k = len(raw)
    weights = np.array(raw) / sum(raw)
    floats = st.lists(st.floats(0, 10), min_size=k, max_size=k)
    losses, references = data.draw(floats), data.draw(floats)
    floor = np.array(data.draw(st.lists(st.floats(0, 1 / k), min_size=k, max_size=k)))
    ceiling = np.array(data.draw(st.lists(st.floats(1 / k, 1), min_size=k, max_size=k)))
    limits = Limits(np.ones(k), floor, ceiling, bounded(weights, floor, ceiling), 0.1)
    for name in POLICIES:
        found = update(name, weights, losses, references, limits)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        assert (found >= floor - 1e-9).all(), name
        assert (found <= ceiling + 1e-9).all(), name


def test_weights_within_their_bounds_are_unchanged():
    found = bounded(START, np.zeros(7), np.ones(7))
    np.testing.assert_array_equal(found, START)


def test_domains_of_weight_0_take_what_the_ceilings_leave():
    found = bounded(np.array([1.0, 0.0]), np.zeros(2), np.array([0.4, 1.0]))
    np.testing.assert_allclose(found, [0.4, 0.6], atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "losses", "references", "message"),
    [
        ([0.5, 0.4], [1, 1], [1, 1], "sum to 0.9, expected 1"),
        ([1.5, -0.5], [1, 1], [1, 1], "found weights"),
        ([0.5, 0.5], [1, float("nan")], [1, 1], "found losses"),
        ([0.5, 0.5], [1, -1], [1, 1], "found losses"),
        ([0.5, 0.5], [1, 1], [1, float("inf")], "found reference losses"),
    ],
)
def test_impossible_weights_and_losses_are_refused(weights, losses, references, message):
    with pytest.raises(UserError, match=message):
        update("paper", weights, losses, references, Limits.none(weights))


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="expected one of paper, released, constant, dro"):
        update("papper", START, START, START, Limits.none(START))
