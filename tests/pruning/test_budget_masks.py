"""Masks driven to a number of parameters, then to the shape that it leads to."""

from dataclasses import replace

import pytest
import torch

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget
from llmshearing.architecture.families import family_of
from llmshearing.pruning.budget_masks import BudgetMasks, build_masks
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.settings import PruningSettings

CONFIG = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
TABLE = family_of(CONFIG).table(CONFIG)
SOURCE = TABLE.parameter_count(TABLE.source)
AXES = (Axis.HIDDEN, Axis.LAYER, Axis.HEAD, Axis.INTERMEDIATE)


def make(share=0.5) -> BudgetMasks:
    """Budget masks with logits and multipliers as in the middle of a run."""
    budget = Budget(round(share * SOURCE), AXES)
    masks = build_masks(TABLE, budget, PruningSettings(distribution="paper"), seed=5)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for logits in masks.log_alpha.values():
            logits.copy_(torch.randn(logits.shape, generator=generator))
        for number, multiplier in enumerate(masks.multipliers.parameters()):
            multiplier.fill_(0.3 + 0.1 * number)
    return masks


@pytest.mark.parametrize("ramp", [0.0, 0.25, 1.0])
def test_until_the_shape_is_fixed_the_ramped_budget_is_the_constraint(ramp):
    masks = make()
    masks.set_state(MaskState(1, ramp, shaped=False))
    drawn = masks()
    allowed = SOURCE + ramp * (masks.budget.parameters - SOURCE)
    gap = (drawn.expected_parameters.item() - allowed) / SOURCE
    linear = masks.multipliers.linear["budget"].item()
    quadratic = masks.multipliers.quadratic["budget"].item()
    expected = linear * gap + quadratic * gap**2
    assert drawn.penalty.item() == pytest.approx(expected, rel=1e-5)
    drawn.penalty.backward()
    for kind in (masks.multipliers.linear, masks.multipliers.quadratic):
        for name, multiplier in kind.items():
            assert (multiplier.grad.abs().sum() > 0) == (name == "budget")


def test_until_the_shape_is_fixed_evaluation_cuts_to_the_ramped_budget():
    masks = make().eval()
    masks.set_state(MaskState(1, 0.0, shaped=False))
    assert masks.sizes_now()[Axis.HIDDEN] <= 24
    counts = []
    for ramp in (0.25, 0.5, 1.0):
        masks.set_state(MaskState(1, ramp, shaped=False))
        sizes = masks.sizes | masks.sizes_now()
        shape = replace(
            TABLE.source,
            hidden=sizes[Axis.HIDDEN],
            layers=sizes[Axis.LAYER],
            heads=sizes[Axis.HEAD],
            kv_groups=sizes[Axis.HEAD],
            intermediate=sizes[Axis.INTERMEDIATE],
        )
        counts.append(TABLE.parameter_count(shape))
        assert counts[-1] <= SOURCE + ramp * (masks.budget.parameters - SOURCE)
        assert masks.target is None
    assert counts == sorted(counts, reverse=True)


def test_a_fixed_shape_drives_the_masks_like_a_target_shape():
    masks = make()
    masks.set_state(MaskState(4, 1.0, shaped=True))
    assert TABLE.parameter_count(masks.target) <= masks.budget.parameters
    same = Masks(TABLE, masks.target, masks.settings, seed=5)
    assert same.axes == masks.axes
    with torch.no_grad():
        for axis in same.log_alpha:
            same.log_alpha[axis].copy_(masks.log_alpha[axis])
            same.multipliers.linear[axis].copy_(masks.multipliers.linear[axis])
            same.multipliers.quadratic[axis].copy_(masks.multipliers.quadratic[axis])
    same.set_state(MaskState(4, 1.0))
    drawn, expected = masks(), same()
    assert drawn.penalty.item() == pytest.approx(expected.penalty.item(), rel=1e-6)
    drawn.penalty.backward()
    expected.penalty.backward()
    for axis in same.log_alpha:
        torch.testing.assert_close(masks.log_alpha[axis].grad, same.log_alpha[axis].grad)
    assert masks.multipliers.linear["budget"].grad.item() == 0.0


def test_a_fixed_shape_survives_later_steps_and_a_resume():
    masks = make()
    masks.set_state(MaskState(4, 1.0, shaped=True))
    target = masks.target
    with torch.no_grad():
        masks.log_alpha["hidden"].add_(3.0)
    masks.set_state(MaskState(5, 1.0, shaped=True))
    assert masks.target == target
    resumed = make()
    resumed.load_state_dict(masks.state_dict())
    resumed.set_state(MaskState(5, 1.0, shaped=True))
    assert resumed.target == target
