"""Distributions of a gate: random in training, deterministic in evaluation and export.

Each maps mask logits of any shape to gates of that shape: `sample` for uniform noise in (0, 1),
differentiable, and `deterministic` without noise, which never decreases in the logits.
`keep_probability`, P(gate != 0), is what a unit adds to the expected size of its axis.

`sharpness` multiplies the logits. It is 1 at the start of a run and grows, so that fewer units stay
between off and on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HardConcrete:
    """The paper's gate: a binary concrete variable, stretched and clamped.

    Source: Louizos et al. 2018 (arXiv 1712.01312), section 2.2; Sheared LLaMA, section 2.1.
    """

    beta: float = 0.83  # temperature; 0.83 in the paper, 2/3 in its released code
    gamma: float = -0.1  # lower end of the stretched interval
    zeta: float = 1.1  # upper end
    unit: float | None = None  # the logit at which the gate is 1; None if large logits give 1

    def sample(self, log_alpha: Tensor, uniform: Tensor, sharpness: float = 1.0) -> Tensor:
        """Stretch and clamp s = sigmoid((log(u / (1 - u)) + log_alpha) / beta)."""
        logits = torch.logit(uniform) + sharpness * log_alpha
        return self._stretch(torch.sigmoid(logits / self.beta))

    def keep_probability(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """P(z != 0) = 1 - sigmoid(beta log(-gamma / zeta) - log_alpha)."""
        shift = self.beta * math.log(-self.gamma / self.zeta)
        return torch.sigmoid(sharpness * log_alpha - shift)

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """The gate at the median noise, u = 1/2: exactly 1 for large logits."""
        return self._stretch(torch.sigmoid(sharpness * log_alpha / self.beta))

    def _stretch(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReleasedHardConcrete(HardConcrete):
    """As in the paper's released code: beta = 2/3, and another gate without noise."""

    beta: float = 2 / 3

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """sigmoid(0.8 log_alpha / beta), never quite 0 or 1 (released code, `l0_module.py`)."""
        return torch.sigmoid(0.8 * sharpness * log_alpha / self.beta)


@dataclass(frozen=True)
class Linear:
    """A gate without noise, linear in its logit, that may exceed 1.

    A unit that matters keeps learning its scale, where the hard concrete gate stops at 1. A unit
    with a logit of 0 or less is off in every forward pass and gets no gradient. The idea is that of
    the deterministic gates of arXiv 2603.08065; the form is our own.
    """

    unit: float = 4.0  # the logit at which the gate is 1; the masks start there
    width: float = 1.0  # width of the sigmoid that counts a unit as kept

    def sample(self, log_alpha: Tensor, uniform: Tensor, sharpness: float = 1.0) -> Tensor:
        """The gate without noise."""
        del uniform
        return self.deterministic(log_alpha, sharpness)

    def keep_probability(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """A smooth count of the units that are on: sigmoid(log_alpha / width)."""
        return torch.sigmoid(sharpness * log_alpha / self.width)

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """max(0, log_alpha / unit), at any sharpness."""
        del sharpness
        return torch.relu(log_alpha) / self.unit


Distribution = HardConcrete | Linear
DISTRIBUTIONS: dict[str, Distribution] = {
    "paper": HardConcrete(),
    "released": ReleasedHardConcrete(),
    "linear": Linear(),
}
