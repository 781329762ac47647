"""Extrapolated losses and domains that stop improving."""

import numpy as np
import pytest

from llmshearing.mixture.history import POINTS, LossHistory, PlateauDetector


def curve(n):
    return np.array([3.0 * n**-0.3 + 1.2, 5.0 * n**-0.5 + 0.4])


def test_a_power_law_is_extrapolated():
    history = LossHistory()
    for n in range(1000, 20_001, 1000):
        history.add(n, curve(n))
    np.testing.assert_allclose(history.extrapolate(100_000), curve(100_000), atol=0.01)


def test_points_before_the_highest_loss_are_left_out():
    history = LossHistory()
    for n in range(100, 1000, 100):
        history.add(n, (2 + curve(1000)) * n / 1000)
    for n in range(1000, 20_001, 1000):
        history.add(n, 2 + curve(n))
    np.testing.assert_allclose(history.extrapolate(100_000), 2 + curve(100_000), atol=0.03)


def test_few_points_give_the_lowest_loss():
    history = LossHistory()
    for n, losses in ((5, [1.0, 1.0]), (10, [3.0, 2.0]), (20, [2.5, 2.2])):
        history.add(n, losses)
    np.testing.assert_array_equal(history.extrapolate(1000), [2.5, 2.0])


def test_no_extrapolation_is_above_the_lowest_loss():
    history = LossHistory()
    for n, loss in enumerate([5, 2.0, 3.0, 2.5, 3.5, 3.0, 3.2]):
        history.add(n, [loss])
    assert history.extrapolate(100) <= 2.0


def test_an_empty_history_cannot_be_extrapolated():
    with pytest.raises(ValueError, match="no losses yet"):
        LossHistory().extrapolate(10)


def test_a_history_stays_bounded_and_keeps_its_first_and_last_point():
    history = LossHistory()
    for n in range(1000):
        history.add(n, [float(n)])
    assert len(history.samples) <= POINTS
    assert history.samples[0] == 0
    assert history.samples[-1] == 999
    assert history.samples == sorted(history.samples)
    assert [point[0] for point in history.losses] == history.samples
    again = LossHistory.from_state(history.state_dict())
    assert again == history


def test_a_plateau_is_reported_once_per_patience():
    detector = PlateauDetector(patience=3)
    found = [detector.add([0.2 - 0.01 * n, 0.5, -0.1]) for n in range(8)]
    assert found == [[], [], [], [1], [], [], [1], []]


def test_a_domain_that_reached_its_reference_has_no_plateau():
    detector = PlateauDetector(patience=2)
    assert [detector.add([e]) for e in (0.1, -0.1, 0.2, 0.3)] == [[], [], [], []]
