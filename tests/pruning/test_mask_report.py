"""How close the masks are to their target, in numbers and in words."""

import pytest
import torch

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.mask_report import (
    Common,
    Comparison,
    MaskReport,
    axis_report,
    common_units,
)

DECIDED = torch.tensor([[0.99, 0.99, 0.01, 0.01], [0.01, 0.99, 0.99, 0.01]])


def test_decided_masks_of_the_right_size_have_no_problems():
    one = axis_report(DECIDED, 2)
    assert one.expected == pytest.approx(2.0)
    assert (one.undecided, one.units) == (0, 8)
    assert MaskReport({Axis.HEAD: one}, frozen=True, soft_loss=3.0, exact_loss=3.0).problems() == []


def test_undecided_units_are_counted_and_named():
    keep = DECIDED.clone()
    keep[1, 3], keep[1, 2] = 0.4, 0.6
    report = MaskReport({Axis.INTERMEDIATE: axis_report(keep, 2)}, frozen=False)
    assert report.axes[Axis.INTERMEDIATE].undecided == 2
    assert report.problems() == [
        "intermediate: 2 of 8 units are undecided: train longer, or raise pruning.sharpness"
    ]


def test_a_decided_unit_on_the_wrong_side_of_the_target_counts_as_undecided():
    assert axis_report(DECIDED, 1).undecided == 2


def test_a_missed_size_is_reported_with_the_layer_that_is_furthest_off():
    keep = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    report = MaskReport({Axis.HEAD: axis_report(keep, 2)}, frozen=False)
    assert (report.axes[Axis.HEAD].expected, report.axes[Axis.HEAD].furthest) == (2.5, 3.0)
    assert any("expected size 2.5, target 2" in line for line in report.problems())
    assert report.as_table().rows == [["head", "2", "2.5", "3.0", "1 of 8"]]


@pytest.mark.parametrize(("expected", "problems"), [(2.009, 0), (1.991, 0), (2.011, 1), (1.989, 1)])
def test_an_expected_size_may_be_half_a_percent_off(expected, problems):
    keep = torch.tensor([1.0, expected - 1.0, 0.0], dtype=torch.float64).clamp(0.0, 1.0)
    keep[2] = expected - keep[:2].sum()
    report = MaskReport({Axis.HIDDEN: axis_report(keep, 2)}, frozen=False)
    assert len(report.problems()) == problems


@pytest.mark.parametrize(("exact", "problems"), [(3.009, 0), (2.991, 0), (3.011, 1), (2.989, 1)])
def test_a_cut_may_move_the_loss_by_a_hundredth(exact, problems):
    report = MaskReport({}, frozen=False, soft_loss=3.0, exact_loss=exact)
    assert len(report.problems()) == problems
    for problem in report.problems():
        assert f"from 3.0000 to {exact:.4f}" in problem
        assert "pruning.freeze" in problem


def test_units_in_common_are_counted_per_layer_next_to_what_chance_gives():
    kept = torch.tensor([[0, 1, 2], [3, 4, 5]])
    best = torch.tensor([[0, 2, 5], [0, 1, 2]])
    found = common_units(kept, best, 6)
    assert (found.units, found.kept) == (2, 6)
    assert found.chance == pytest.approx(2 * 3 * 3 / 6)
    # Hypergeometric: k (k / n) (1 - k / n) (n - k) / (n - 1) in each layer.
    assert found.deviation**2 == pytest.approx(2 * 3 * 0.5 * 0.5 * 3 / 5)
    assert found.by_chance
    assert not common_units(kept, kept, 6).by_chance


def test_masks_on_an_axis_of_few_units_are_not_called_chance():
    """Two of three units are often the same two, so even a perfect match would prove nothing."""
    assert not common_units(torch.tensor([0, 1]), torch.tensor([0, 1]), 3).by_chance


def compared(importance=5.0, oneshot=5.0, common=Common(90, 100, 50.0, 3.0), steps=75):  # noqa: B008
    comparison = Comparison({Axis.HIDDEN: common}, importance, oneshot, steps)
    report = MaskReport({}, True, soft_loss=4.0, exact_loss=4.0, comparison=comparison)
    return report.problems()


def test_masks_that_beat_the_one_shot_cut_have_no_problem():
    assert compared() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"importance": 3.9}, "the most important units have a loss of 3.9000 on the trained"),
        ({"oneshot": 3.9}, "the source cut at once has a loss of 3.9000 before any training"),
        ({"common": Common(56, 100, 50.0, 3.0)}, "56 of the 100 kept hidden units"),
    ],
)
def test_worse_masks_are_told_plainly_with_what_to_do(given, words):
    (problem,) = compared(**given)
    assert problem.startswith("the masks are worse than a one-shot cut: ")
    assert words in problem
    assert problem.endswith("Use llmshearing prune-oneshot, or 4 times the steps")


def test_the_advised_steps_are_at_least_twice_those_of_the_run():
    (problem,) = compared(importance=3.9, steps=5000)
    assert problem.endswith("or 2 times the steps")
