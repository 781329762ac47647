"""The Lagrangian that drives expected sizes to the target (paper, eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import Axis
from llmshearing.errors import UserError


class ConstraintForm(Protocol):
    """How a gap between expected and target size becomes a penalty."""

    def multipliers(self, axis: Axis, layers: int) -> int:
        """How many (linear, quadratic) pairs the axis has."""
        ...

    def gap(self, expected: Tensor, target: float, size: int) -> Tensor:
        """The signed gap per layer (or of the whole axis), [L] or [1]."""
        ...

    def reduce(self, penalty: Tensor) -> Tensor:
        """The axis's penalty from its layers' penalties, a scalar."""
        ...


@dataclass(frozen=True)
class Published:
    """As in the paper: counts, a pair of multipliers for every layer, summed."""

    def multipliers(self, axis: Axis, layers: int) -> int:
        """One pair per layer, one for axes that all layers share."""
        return layers if axis.per_layer else 1

    def gap(self, expected: Tensor, target: float, size: int) -> Tensor:
        """Units kept too many."""
        del size
        return expected - target

    def reduce(self, penalty: Tensor) -> Tensor:
        """Sum over layers."""
        return penalty.sum()


@dataclass(frozen=True)
class Released:
    """As in the released code: fractions of the source's size, one pair per axis, averaged."""

    def multipliers(self, axis: Axis, layers: int) -> int:
        """One pair, shared by all layers."""
        del axis, layers
        return 1

    def gap(self, expected: Tensor, target: float, size: int) -> Tensor:
        """The fraction of units kept too many."""
        return (expected - target) / size

    def reduce(self, penalty: Tensor) -> Tensor:
        """Mean over layers."""
        return penalty.mean()


BUDGET = "budget"  # the name of the multipliers of a budget

CONSTRAINTS: dict[str, ConstraintForm] = {"published": Published(), "released": Released()}


def constraint_of(name: str) -> ConstraintForm:
    """The constraint registered under `name`.

    Raises:
        UserError: there is none.
    """
    if name not in CONSTRAINTS:
        raise UserError(
            f"pruning.constraint: found {name!r}, expected one of {', '.join(CONSTRAINTS)}"
        )
    return CONSTRAINTS[name]


class Multipliers(nn.Module):
    """The linear and quadratic Lagrange multipliers of each axis, starting at zero.

    They ascend: their optimizer group says `maximize`. No parameter has zero dimensions, which
    FSDP would refuse.
    """

    def __init__(
        self, form: ConstraintForm, axes: Iterable[Axis], layers: int, *, budget: bool = False
    ) -> None:
        super().__init__()
        self.form = form
        counts = {axis.value: form.multipliers(axis, layers) for axis in axes}
        counts |= {BUDGET: 1} if budget else {}
        self.linear = nn.ParameterDict({name: torch.zeros(n) for name, n in counts.items()})
        self.quadratic = nn.ParameterDict({name: torch.zeros(n) for name, n in counts.items()})

    def penalty(self, axis: Axis, expected: Tensor, target: float, size: int) -> Tensor:
        """The penalty of one axis, linear * gap + quadratic * gap^2, a scalar.

        Args:
            axis: the axis.
            expected: expected kept units, [L] or [1].
            target: units to keep at this point of the sparsity warmup.
            size: units in the source.
        """
        gap = self.form.gap(expected, target, size)
        linear, quadratic = self.linear[axis.value], self.quadratic[axis.value]
        return self.form.reduce(linear * gap + quadratic * gap.square())

    def budget_penalty(self, expected: Tensor, budget: float, size: int) -> Tensor:
        """The penalty of a model that may have so many parameters, whatever its shape.

        Args:
            expected: expected parameters, a scalar.
            budget: parameters that it may have at this point of the sparsity warmup.
            size: parameters of the source.
        """
        gap = (expected - budget) / size
        return (self.linear[BUDGET] * gap + self.quadratic[BUDGET] * gap.square()).sum()

    def snapshot(self, axes: Iterable[Axis]) -> dict[str, dict[Axis, Tensor]]:
        """Copies of both multipliers per axis, for logging."""
        return {
            "linear": {a: self.linear[a.value].detach().clone() for a in axes},
            "quadratic": {a: self.quadratic[a.value].detach().clone() for a in axes},
        }
