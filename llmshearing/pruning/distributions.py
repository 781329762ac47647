"""Distributions of a gate: sampled in training, deterministic in evaluation and export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmshearing.errors import UserError


class Distribution(Protocol):
    """Maps a mask's logits (any shape) to gates of the same shape.

    `sharpness` (1 at the start of a run, growing) makes the step from off to on steeper, so that
    fewer units lie in between.
    """

    @property
    def off_below(self) -> float:
        """Logit up to which a unit never takes part and the loss gives it no gradient."""
        ...

    def sample(self, log_alpha: Tensor, uniform: Tensor, sharpness: float = 1.0) -> Tensor:
        """Gates for uniform noise in (0, 1); differentiable in `log_alpha`."""
        ...

    def keep_probability(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """P(gate != 0), the unit's expected contribution to a count."""
        ...

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """The gate used without noise; it does not decrease in `log_alpha`."""
        ...


@dataclass(frozen=True)
class HardConcrete:
    """The stretched and clamped binary concrete (Louizos et al. 2018, section 2.2).

    Attributes:
        beta: temperature. The paper's text says 0.83, its released code 2/3.
        gamma, zeta: ends of the stretched interval.
    """

    beta: float = 0.83
    gamma: float = -0.1
    zeta: float = 1.1
    off_below: float = -math.inf  # there is always noise that turns a unit on

    def sample(self, log_alpha: Tensor, uniform: Tensor, sharpness: float = 1.0) -> Tensor:
        """Binary concrete sigmoid((logit(u) + log_alpha) / beta), stretched and clamped."""
        logits = torch.logit(uniform) + sharpness * log_alpha
        return self._stretch(torch.sigmoid(logits / self.beta))

    def keep_probability(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """1 - sigmoid(beta log(-gamma / zeta) - log_alpha)."""
        shift = self.beta * math.log(-self.gamma / self.zeta)
        return torch.sigmoid(sharpness * log_alpha - shift)

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """The gate at the median noise, u = 1/2: exactly 1 for a unit that surely stays."""
        return self._stretch(torch.sigmoid(sharpness * log_alpha / self.beta))

    def _stretch(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReleasedHardConcrete(HardConcrete):
    """As in the released code: beta = 2/3 and an evaluation gate of its own."""

    beta: float = 2 / 3

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """sigmoid(0.8 log_alpha / beta), never quite 0 or 1 (released code, `l0_module.py`)."""
        return torch.sigmoid(0.8 * sharpness * log_alpha / self.beta)


@dataclass(frozen=True)
class Linear:
    """A gate without noise that is linear in its logit and may exceed 1.

    The gate is max(0, log_alpha / unit): a unit that matters goes on learning its scale where the
    hard concrete's gate stops at 1, and one that is off is off in every forward. After the
    deterministic gates of arXiv 2603.08065, whose exact form is not taken over.

    Attributes:
        unit: the logit at which the gate is 1, the masks' start.
        width: of the sigmoid that counts a unit as kept.
    """

    unit: float = 4.0
    width: float = 1.0
    off_below: float = 0.0

    def sample(self, log_alpha: Tensor, uniform: Tensor, sharpness: float = 1.0) -> Tensor:
        """The deterministic gate."""
        del uniform
        return self.deterministic(log_alpha, sharpness)

    def keep_probability(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """A smooth count: sigmoid(sharpness log_alpha / width)."""
        return torch.sigmoid(sharpness * log_alpha / self.width)

    def deterministic(self, log_alpha: Tensor, sharpness: float = 1.0) -> Tensor:
        """max(0, log_alpha / unit)."""
        del sharpness
        return torch.relu(log_alpha) / self.unit


DISTRIBUTIONS: dict[str, Distribution] = {
    "paper": HardConcrete(),
    "released": ReleasedHardConcrete(),
    "linear": Linear(),
}


def distribution_of(name: str) -> Distribution:
    """The distribution registered under `name`.

    Raises:
        UserError: there is none.
    """
    if name not in DISTRIBUTIONS:
        raise UserError(
            f"pruning.distribution: found {name!r}, expected one of {', '.join(DISTRIBUTIONS)}"
        )
    return DISTRIBUTIONS[name]
