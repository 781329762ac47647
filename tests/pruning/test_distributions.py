"""Gate distributions: closed forms, gradients, and their order in the logits."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from llmshearing.pruning.distributions import DISTRIBUTIONS

NAMES = sorted(DISTRIBUTIONS)
SAMPLED = [name for name in NAMES if name.startswith("paper")]


@pytest.mark.parametrize("name", NAMES)
def test_sampler_and_probabilities_pass_gradcheck(name):
    distribution = DISTRIBUTIONS[name]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    # Noise near one half keeps the gates inside (0, 1), where the clamp is differentiable.
    uniform = 0.5 + 0.1 * (torch.rand(6, dtype=torch.float64, generator=generator) - 0.5)
    small = (0.1 * logits).detach().requires_grad_()
    assert gradcheck(lambda x: distribution.sample(x, uniform), small)
    assert gradcheck(distribution.keep_probability, logits)


@pytest.mark.parametrize(("name", "beta"), [("paper", 0.83), ("released", 2 / 3)])
def test_closed_forms(name, beta):
    distribution = DISTRIBUTIONS[name]
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)
    uniform = torch.full_like(logits, 0.3)
    for i, a in enumerate(logits.tolist()):
        s = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + a) / beta))
        z = min(1.0, max(0.0, s * 1.2 - 0.1))
        assert distribution.sample(logits, uniform)[i].item() == pytest.approx(z, abs=1e-12)
        p = 1 - 1 / (1 + math.exp(-(beta * math.log(0.1 / 1.1) - a)))
        assert distribution.keep_probability(logits)[i].item() == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLED)
def test_keep_probability_is_the_frequency_of_nonzero_gates(name):
    distribution = DISTRIBUTIONS[name]
    uniform = torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a in (-2.0, 0.0, 1.5):
        logits = torch.full_like(uniform, a)
        frequency = (distribution.sample(logits, uniform) > 0).double().mean().item()
        probability = distribution.keep_probability(logits[:1]).item()
        assert abs(frequency - probability) < 3e-3


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_gates_have_the_order_of_the_logits(name):
    logits = torch.linspace(-1.0, 1.0, 50, dtype=torch.float64)
    gates = DISTRIBUTIONS[name].deterministic(logits)
    assert (gates[gates > 0].diff() > 0).all()
    assert (gates.diff() >= 0).all()
    assert (gates[25:] > 0).all()
    assert (gates >= 0).all()
    assert (gates <= 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_sharpness_leaves_fewer_units_undecided_in_the_same_order(name):
    logits = torch.linspace(-5.0, 5.0, 101, dtype=torch.float64)
    distribution = DISTRIBUTIONS[name]
    undecided = []
    for sharpness in (1.0, 4.0, 16.0):
        keep = distribution.keep_probability(logits, sharpness)
        assert (keep.diff() >= 0).all()
        undecided.append(((keep > 0.05) & (keep < 0.95)).sum().item())
    assert undecided[0] > 2 * undecided[1] > 4 * undecided[2]


def test_linear_gates_exceed_one_and_have_no_noise():
    gate = DISTRIBUTIONS["linear"]
    logits = torch.tensor([-1.0, 0.0, 2.0, 4.0, 6.0], dtype=torch.float64, requires_grad=True)
    for noise in (0.1, 0.9):
        drawn = gate.sample(logits, torch.full_like(logits, noise))
        assert drawn.tolist() == [0.0, 0.0, 0.5, 1.0, 1.5]
    drawn.sum().backward()
    assert logits.grad.tolist() == [0.0, 0.0, 0.25, 0.25, 0.25]
    keep = gate.keep_probability(logits.detach(), 2.0)
    assert keep.tolist() == pytest.approx([1 / (1 + math.exp(-2 * x)) for x in (-1, 0, 2, 4, 6)])


def test_deterministic_gate_of_the_released_code():
    logits = torch.tensor([4.605], dtype=torch.float64)
    gate = DISTRIBUTIONS["released"].deterministic(logits).item()
    assert gate == pytest.approx(1 / (1 + math.exp(-0.8 * 4.605 * 1.5)), abs=1e-12)
