"""The Lagrangian that drives expected sizes to the target (paper, eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

    def scale(self, axis: Axis, size: int, layers: int) -> tuple[int, int]:
        """By what to divide the rates of the linear and the quadratic multipliers.

        Adam's steps are as large whatever the gap is measured in. So divided, a multiplier of 1 in
        fractions and averages pulls at a unit as hard as one made of the same steps in counts.
        """
        ...


@dataclass(frozen=True)
class Paper:
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

    def scale(self, axis: Axis, size: int, layers: int) -> tuple[int, int]:
        """In counts, and summed."""
        summed = layers if axis.per_layer else 1
        return summed * size, summed * size**2


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

    def scale(self, axis: Axis, size: int, layers: int) -> tuple[int, int]:
        """In fractions, and averaged: as they are."""
        del axis, size, layers
        return 1, 1


BUDGET = "budget"  # the name of the multipliers of a budget

CONSTRAINTS: dict[str, ConstraintForm] = {"paper": Paper(), "released": Released()}


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

    They ascend: their optimizer groups say `maximize`. No parameter has zero dimensions, which
    FSDP would refuse.

    Args:
        form: how a gap becomes a penalty.
        sizes: units in the source of each axis that shrinks.
        layers: layers of the source.
        budget: whether there is a pair for the parameters of the whole model.
    """

    def __init__(
        self, form: ConstraintForm, sizes: Mapping[Axis, int], layers: int, *, budget: bool = False
    ) -> None:
        super().__init__()
        self.form = form
        counts = {axis.value: form.multipliers(axis, layers) for axis in sizes}
        self.scales = {a.value: form.scale(a, size, layers) for a, size in sizes.items()}
        if budget:  # the gap is a fraction
            counts[BUDGET], self.scales[BUDGET] = 1, (1, 1)
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

    def by_rate(
        self, linear: float, quadratic: float
    ) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
        """Kind, rate and multipliers of each group that ascends at one rate.

        Args:
            linear: rate of the linear multipliers of a gap in fractions.
            quadratic: rate of the quadratic ones.
        """
        kinds = (("linear", self.linear, linear), ("quadratic", self.quadratic, quadratic))
        for number, (kind, multipliers, rate) in enumerate(kinds):
            groups: dict[int, list[nn.Parameter]] = {}
            for name, multiplier in multipliers.items():
                groups.setdefault(self.scales[name][number], []).append(multiplier)
            for scale, members in groups.items():
                yield kind, rate / scale, members

    def snapshot(self, axes: Iterable[Axis]) -> dict[str, dict[Axis, Tensor]]:
        """Copies of both multipliers per axis, for logging."""
        return {
            "linear": {a: self.linear[a.value].detach().clone() for a in axes},
            "quadratic": {a: self.quadratic[a.value].detach().clone() for a in axes},
        }
