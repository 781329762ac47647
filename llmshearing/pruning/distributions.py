"""Distributions of a gate: sampled in training, deterministic in evaluation and export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmshearing.errors import UserError


class Distribution(Protocol):
    """Maps a mask's logits (any shape) to gates of the same shape."""

    def sample(self, log_alpha: Tensor, uniform: Tensor) -> Tensor:
        """Gates in [0, 1] for uniform noise in (0, 1); differentiable in `log_alpha`."""
        ...

    def keep_probability(self, log_alpha: Tensor) -> Tensor:
        """P(gate != 0), the unit's expected contribution to a count."""
        ...

    def deterministic(self, log_alpha: Tensor) -> Tensor:
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

    def sample(self, log_alpha: Tensor, uniform: Tensor) -> Tensor:
        """Binary concrete sigmoid((logit(u) + log_alpha) / beta), stretched and clamped."""
        return self._stretch(torch.sigmoid((torch.logit(uniform) + log_alpha) / self.beta))

    def keep_probability(self, log_alpha: Tensor) -> Tensor:
        """1 - sigmoid(beta log(-gamma / zeta) - log_alpha)."""
        return torch.sigmoid(log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    def deterministic(self, log_alpha: Tensor) -> Tensor:
        """The gate at the median noise, u = 1/2: exactly 1 for a unit that surely stays."""
        return self._stretch(torch.sigmoid(log_alpha / self.beta))

    def _stretch(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReleasedHardConcrete(HardConcrete):
    """As in the released code: beta = 2/3 and an evaluation gate of its own."""

    beta: float = 2 / 3

    def deterministic(self, log_alpha: Tensor) -> Tensor:
        """sigmoid(0.8 log_alpha / beta), never quite 0 or 1 (released code, `l0_module.py`)."""
        return torch.sigmoid(0.8 * log_alpha / self.beta)


DISTRIBUTIONS: dict[str, Distribution] = {
    "hard_concrete": HardConcrete(),
    "hard_concrete_released": ReleasedHardConcrete(),
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
