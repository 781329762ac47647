"""Which units stay, and which of them count as undecided."""

import torch

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.selection import (
    SMALLEST_KEPT_GATE,
    count_undecided,
    decision_penalty,
    keep_only,
    select,
)


def test_the_units_of_highest_score_stay_in_ascending_order():
    scores = {
        Axis.HIDDEN: torch.tensor([0.3, 0.9, -1.0, 0.5]),
        Axis.HEAD: torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]),
    }
    kept = select(scores, {Axis.HIDDEN: 2, Axis.HEAD: 2})
    assert kept[Axis.HIDDEN].tolist() == [1, 3]
    assert kept[Axis.HEAD].tolist() == [[1, 2], [0, 1]]


def test_among_equal_scores_the_lower_index_stays():
    scores = {
        Axis.HIDDEN: torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]),
        Axis.INTERMEDIATE: torch.zeros(2, 100),
    }
    kept = select(scores, {Axis.HIDDEN: 2, Axis.INTERMEDIATE: 60})
    assert kept[Axis.HIDDEN].tolist() == [1, 2]
    assert kept[Axis.INTERMEDIATE].tolist() == [list(range(60))] * 2


def test_a_unit_is_undecided_unless_it_is_within_five_percent_of_its_side():
    probability = torch.tensor([0.96, 0.94, 0.04, 0.06])
    assert count_undecided(probability, torch.tensor([0, 1])) == 2
    assert count_undecided(probability, torch.tensor([0])) == 2
    assert count_undecided(torch.tensor([0.95, 0.05]), torch.tensor([0])) == 0


def test_gates_of_units_that_stay_have_a_floor_and_the_others_are_zero():
    gates = {Axis.HIDDEN: torch.tensor([0.05, 0.7, 1.3, 0.0])}
    kept = {Axis.HIDDEN: torch.tensor([0, 2, 3])}
    expected = torch.tensor([SMALLEST_KEPT_GATE, 0.0, 1.3, SMALLEST_KEPT_GATE])
    assert torch.equal(keep_only(gates, kept)[Axis.HIDDEN], expected)


def test_the_decision_penalty_moves_only_unsure_units_each_to_its_own_side():
    logits = torch.tensor([0.4, 0.1, -0.2, -0.5], requires_grad=True)
    probability = torch.tensor([0.9995, 0.9, 0.5, 0.0005])
    penalty = decision_penalty(logits, probability, torch.tensor([0, 1]))
    assert penalty.item() == 0.0
    penalty.backward()
    sure, up, down, off = logits.grad.tolist()
    assert sure == off == 0.0
    assert up == -down < 0.0  # gradient descent raises the unit that stays and lowers the other
