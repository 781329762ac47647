"""How close the masks are to their target, in numbers and in words."""

import pytest
import torch

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.mask_report import MaskReport, axis_report

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
