"""Masks of a target shape: start, noise, gates, penalty, deciding and freezing."""

from dataclasses import replace

import pytest
import torch

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.families import family_of
from llmshearing.optimization import mask_groups
from llmshearing.pruning.mask_report import SIZE_TOLERANCE
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.scores import random
from llmshearing.pruning.settings import LOG_ALPHA_BOUND, PruningSettings

CONFIG = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}


def make(constraint="released", distribution="paper", **target):
    table = family_of(CONFIG).table(CONFIG)
    target = target or {"hidden": 12, "layers": 3, "heads": 2, "kv_groups": 2, "intermediate": 20}
    shape = replace(table.source, **target)
    return Masks(
        table, shape, PruningSettings(distribution=distribution, constraint=constraint), seed=5
    )


def test_noise_is_keyed_by_seed_and_step_alone():
    first, second = make(), make()
    for masks in (first, second):
        for logits in masks.log_alpha.values():
            logits.data.zero_()
    second.set_state(MaskState(3, 0.0))
    second()  # another step in between has no effect
    for masks in (first, second):
        masks.set_state(MaskState(4, 0.5))
    for axis, gate in first().gates.items():
        assert torch.equal(gate, second().gates[axis])
    again = first().gates[Axis.HIDDEN]
    first.set_state(MaskState(5, 0.5))
    assert not torch.equal(again, first().gates[Axis.HIDDEN])
    first.set_state(MaskState(5, 0.5), noise_stream=1)
    shared = first().gates[Axis.HIDDEN]
    second.set_state(MaskState(5, 0.5))
    assert not torch.equal(shared, second().gates[Axis.HIDDEN])


def test_an_axis_that_does_not_shrink_has_no_mask():
    masks = make(intermediate=20)
    assert masks.axes == (Axis.INTERMEDIATE,)
    assert set(masks().gates) == {Axis.INTERMEDIATE}


def test_evaluation_cuts_to_the_ramped_size():
    masks = make().eval()
    for ramp, hidden in ((0.0, 24), (0.5, 18), (1.0, 12)):
        masks.set_state(MaskState(1, ramp))
        gates = masks().gates
        assert gates[Axis.HIDDEN].count_nonzero() == hidden
    assert (gates[Axis.HEAD].count_nonzero(dim=-1) == 2).all()
    assert (gates[Axis.INTERMEDIATE].count_nonzero(dim=-1) == 20).all()
    assert gates[Axis.LAYER].count_nonzero() == 3


def test_gates_of_kept_units_are_never_zero():
    """A kept unit counts in the norms' means, so its gate must not be 0."""
    masks = make().eval()
    for logits in masks.log_alpha.values():
        logits.data.fill_(-100.0)
    masks.clamp_logits()
    masks.set_state(MaskState(1, 1.0))
    for axis, gate in masks().gates.items():
        assert (gate.count_nonzero(dim=-1) == masks.target_sizes[axis]).all()


def test_initial_logits_differ_and_stay_within_the_bound():
    masks = make()
    for logits in masks.log_alpha.values():
        assert logits.std() > 0
        assert logits.max() < LOG_ALPHA_BOUND


def test_logits_are_clamped_at_both_bounds():
    masks = make()
    for logits in masks.log_alpha.values():
        logits.data.copy_(torch.linspace(-9.0, 9.0, logits.numel()).view_as(logits))
    masks.clamp_logits()
    for logits in masks.log_alpha.values():
        assert logits.min().item() == -LOG_ALPHA_BOUND
        assert logits.max().item() == LOG_ALPHA_BOUND


@pytest.mark.parametrize("constraint", ["paper", "released"])
def test_penalty_is_the_formula_of_the_paper_or_the_released_code(constraint):
    masks = make(constraint)
    masks.set_state(MaskState(1, 0.25))
    with torch.no_grad():
        for number, parameter in enumerate(masks.multipliers.parameters()):
            parameter.fill_(0.3 + 0.1 * number)
    drawn, expected = masks(), 0.0
    for axis in masks.axes:
        size, want = masks.sizes[axis], masks.target_sizes[axis]
        probability = masks.distribution.keep_probability(masks.log_alpha[axis.value]).double()
        counts = probability.sum(-1).reshape(-1)
        gap = counts - (0.75 * size + 0.25 * want)
        linear = masks.multipliers.linear[axis.value].double()
        quadratic = masks.multipliers.quadratic[axis.value].double()
        if constraint == "paper":
            assert linear.numel() == (4 if axis.per_layer else 1)
            expected += (linear * gap + quadratic * gap**2).sum()
        else:
            assert linear.numel() == 1
            expected += (linear * gap / size + quadratic * (gap / size) ** 2).mean()
    assert drawn.penalty.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_parameter_has_a_dimension():
    assert all(parameter.ndim > 0 for parameter in make("paper").parameters())


@pytest.mark.parametrize("name", ["paper", "released", "linear"])
def test_frozen_masks_train_the_model_that_export_writes(name):
    masks = make(distribution=name)
    for logits in masks.log_alpha.values():
        logits.data.copy_(torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)))
    for linear in masks.multipliers.linear.values():
        linear.data.fill_(3.0)
    masks.set_state(MaskState(90, 1.0, 8.0, frozen=True))
    training, evaluation = masks(), masks.eval()()
    for axis, gate in training.gates.items():
        assert torch.equal(gate, evaluation.gates[axis])
        assert (gate.count_nonzero(dim=-1) == masks.target_sizes[axis]).all()
        assert (training.expected[axis] == masks.target_sizes[axis]).all()
    assert training.penalty.item() == 0.0
    count = masks.table.parameter_count(masks.target)
    assert training.expected_parameters.item() == count


def test_frozen_logits_get_a_zero_gradient():
    masks = make()
    masks.set_state(MaskState(90, 1.0, 8.0, frozen=True))
    drawn = masks()
    (drawn.penalty + drawn.expected_parameters).backward()
    for logits in masks.log_alpha.values():
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0


def from_scores(scores, distribution="linear", spread=1.5):
    table = family_of(CONFIG).table(CONFIG)
    settings = PruningSettings(
        init_log_alpha=3.0, importance_spread=spread, distribution=distribution
    )
    shape = replace(table.source, hidden=12, layers=3, intermediate=20)
    return Masks(table, shape, settings, seed=5, scores=scores)


def test_masks_start_in_the_order_of_importance():
    scores = random(family_of(CONFIG).table(CONFIG), seed=2)
    masks = from_scores(scores)
    for axis in masks.axes:
        logits = masks.log_alpha[axis.value].detach()
        assert torch.equal(logits.argmin(-1), scores[axis].argmin(-1))


def test_an_outlier_starts_far_above_its_neighbours_and_within_the_bound():
    scores = random(family_of(CONFIG).table(CONFIG), seed=2)
    scores = {axis: 1.0 + 0.01 * score for axis, score in scores.items()}
    scores[Axis.HIDDEN][7], scores[Axis.LAYER][0] = 239.0, 50.0
    masks = from_scores(scores, spread=4.0)
    for axis, unit in ((Axis.HIDDEN, 7), (Axis.LAYER, 0)):
        logits = masks.log_alpha[axis.value].detach()
        assert logits[unit] == LOG_ALPHA_BOUND
        others = logits[torch.arange(len(logits)) != unit]
        assert others.tolist() == pytest.approx([3.0] * len(others), abs=0.1)


def test_masks_from_scores_start_with_the_source_itself():
    """A gate that follows its logit would otherwise scale every unit by its score."""
    masks = from_scores(random(family_of(CONFIG).table(CONFIG), seed=2))
    for gate in masks().gates.values():
        assert gate.flatten().tolist() == pytest.approx([1.0] * gate.numel(), abs=1e-6)
    masks.log_alpha["hidden"].data.mul_(0.5)
    assert masks().gates[Axis.HIDDEN].tolist() == pytest.approx([0.5] * 24, abs=1e-6)
    masks.set_state(MaskState(90, 1.0, 8.0, frozen=True))
    gates = masks().gates[Axis.HIDDEN]
    assert gates.sort().values.tolist() == pytest.approx([0.0] * 12 + [0.5] * 12, abs=1e-6)


def test_the_constraint_has_a_gradient_at_saturated_logits():
    """The sharpened keep probability has none there, so a missed target would stay missed."""
    masks = make()
    for logits in masks.log_alpha.values():
        logits.data.fill_(-4.0)
    for multiplier in masks.multipliers.linear.values():
        multiplier.data.fill_(-1.0)
    masks.set_state(MaskState(70, 1.0, 8.0))
    masks().penalty.backward()
    for axis in masks.axes:
        gradient = masks.log_alpha[axis.value].grad
        assert gradient is not None
        assert gradient.max() < -1e-5


@pytest.mark.parametrize("name", ["paper", "released", "linear"])
@pytest.mark.parametrize("start", [-2.0, 0.0, 2.0])
def test_deciding_reaches_the_target_exactly(name, start):
    """From logits on any side of the target, and without a loss that moves them."""
    masks = make("paper", name)
    generator = torch.Generator().manual_seed(3)
    for logits in masks.log_alpha.values():
        logits.data.copy_(start + torch.randn(logits.shape, generator=generator))
    for pair in (masks.multipliers.linear, masks.multipliers.quadratic):
        for multiplier in pair.values():
            multiplier.data.fill_(30.0)
    optimizer = torch.optim.Adam(masks.log_alpha.parameters(), lr=0.3, betas=(0.9, 0.95))
    for step in range(40):  # Adam's moments still contain the constraint when deciding begins
        masks.set_state(MaskState(step, 1.0, 8.0, deciding=step >= 10))
        optimizer.zero_grad()
        masks().penalty.backward()
        optimizer.step()
        masks.clamp_logits()
    for one in masks.report().axes.values():
        assert one.undecided == 0
        assert one.furthest == pytest.approx(one.target, rel=SIZE_TOLERANCE)


def constrained(constraint: str, steps: int = 60) -> list[dict[str, torch.Tensor]]:
    """Logits after each step, moved by the constraint alone; all layers are equal."""
    masks = make(constraint)
    with torch.no_grad():
        for logits in masks.log_alpha.values():
            logits.copy_(torch.linspace(1.0, 3.0, logits.shape[-1]).expand_as(logits))
    optimizer = torch.optim.AdamW(mask_groups(masks, masks.settings), eps=1e-12)
    masks.set_state(MaskState(1, 1.0))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        masks().penalty.backward()
        optimizer.step()
        found.append({name: x.detach().clone() for name, x in masks.log_alpha.items()})
    return found


def test_a_learning_rate_has_the_same_effect_in_both_forms_of_the_constraint():
    """Without the divisors, gaps in counts would pull hundreds of times harder."""
    for ours, theirs in zip(constrained("paper"), constrained("released"), strict=True):
        for name, logits in ours.items():
            assert logits.numpy() == pytest.approx(theirs[name].numpy(), abs=1e-3), name
