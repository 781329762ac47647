import pytest
import torch

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.mask_report import MaskReport, axis_report

DECIDED = torch.tensor([[0.99, 0.99, 0.01, 0.01], [0.01, 0.99, 0.99, 0.01]])


def test_decided_masks_of_the_right_size_leave_nothing_to_say():
    one = axis_report(DECIDED, 2)
    assert one.expected == pytest.approx(2.0)
    assert (one.undecided, one.units) == (0, 8)
    assert MaskReport({Axis.HEAD: one}, frozen=True, soft_loss=3.0, exact_loss=3.0).problems() == []


def test_undecided_units_are_counted_and_named():
    keep = DECIDED.clone()
    keep[1, 3], keep[1, 2] = 0.4, 0.6
    verdict = MaskReport({Axis.INTERMEDIATE: axis_report(keep, 2)}, frozen=False)
    assert verdict.axes[Axis.INTERMEDIATE].undecided == 2
    assert verdict.problems() == [
        "intermediate: 2 of 8 units are undecided: train longer, or raise pruning.sharpness"
    ]


def test_a_decided_unit_on_the_wrong_side_of_the_target_counts_as_undecided():
    assert axis_report(DECIDED, 1).undecided == 2


def test_a_missed_size_is_told_with_the_layer_that_is_furthest_off():
    keep = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    verdict = MaskReport({Axis.HEAD: axis_report(keep, 2)}, frozen=False)
    assert (verdict.axes[Axis.HEAD].expected, verdict.axes[Axis.HEAD].furthest) == (2.5, 3.0)
    assert any("expected size 2.5, target 2" in line for line in verdict.problems())
    assert "2.5       3.0" in verdict.as_table()


def test_a_cut_that_costs_loss_is_told():
    verdict = MaskReport({}, frozen=False, soft_loss=3.0, exact_loss=3.2)
    (problem,) = verdict.problems()
    assert "3.2000" in problem
    assert "pruning.freeze" in problem
