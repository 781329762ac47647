"""The Lagrangian that drives expected sizes to the target (paper, section 2.1, equations 1 and 2).

Each axis adds lambda * gap + phi * gap^2 to the loss, where the gap is the expected size less the
target. Weights and masks minimise the sum; the multipliers lambda (linear) and phi (quadratic)
maximise it, so they grow for as long as a gap remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import Axis
from llmshearing.errors import UserError


@dataclass(frozen=True)
class ConstraintForm:
    """How the gaps of an axis become its penalty.

    Attributes:
        counts: whether a gap is a number of units; otherwise it is a fraction of the source's size.
        per_layer: whether each layer of a per-layer axis has its own multipliers and penalties are
            summed over layers; otherwise all layers share one pair and penalties are averaged.
    """

    counts: bool
    per_layer: bool

    def pairs(self, axis: Axis, layers: int) -> int:
        """The number of (linear, quadratic) multiplier pairs of an axis."""
        return layers if self.per_layer and axis.per_layer else 1

    def gap(self, expected: Tensor, target: float, size: int) -> Tensor:
        """The signed gap of each layer [L], or of an axis that all layers share [1]."""
        return expected - target if self.counts else (expected - target) / size

    def reduce(self, penalties: Tensor) -> Tensor:
        """The penalty of an axis, a scalar, from the penalties of its layers."""
        return penalties.sum() if self.per_layer else penalties.mean()

    def rate_divisors(self, axis: Axis, size: int, layers: int) -> tuple[int, int]:
        """What to divide the linear and the quadratic learning rate by.

        Adam's step does not depend on the scale of the gap. Dividing the learning rates by these
        factors makes both forms pull equally hard.
        """
        unit = size if self.counts else 1
        return self.pairs(axis, layers) * unit, self.pairs(axis, layers) * unit**2


CONSTRAINTS = {
    "paper": ConstraintForm(counts=True, per_layer=True),
    "released": ConstraintForm(counts=False, per_layer=False),
}


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
    """The linear and quadratic Lagrange multipliers, all 0 at the start.

    Their optimizer groups set `maximize`. Each multiplier has one dimension, because FSDP does not
    accept parameters without dimensions.

    Args:
        form: how gaps become a penalty.
        sizes: units in the source of each axis that shrinks.
        layers: layers of the source.
        budget: whether to add a pair for the parameter count of the whole model.
    """

    BUDGET = "budget"

    def __init__(
        self, form: ConstraintForm, sizes: Mapping[Axis, int], layers: int, *, budget: bool = False
    ) -> None:
        super().__init__()
        self.form = form
        counts = {axis.value: form.pairs(axis, layers) for axis in sizes}
        self.divisors = {a.value: form.rate_divisors(a, n, layers) for a, n in sizes.items()}
        if budget:  # its gap is a fraction in both forms
            counts[self.BUDGET], self.divisors[self.BUDGET] = 1, (1, 1)
        self.linear = nn.ParameterDict({name: torch.zeros(n) for name, n in counts.items()})
        self.quadratic = nn.ParameterDict({name: torch.zeros(n) for name, n in counts.items()})

    def penalty(self, axis: Axis, expected: Tensor, target: float, size: int) -> Tensor:
        """The penalty of one axis, a scalar.

        Args:
            axis: the axis.
            expected: expected kept units, [L] or [1].
            target: units to keep at this point of the sparsity warmup.
            size: units in the source.
        """
        gap = self.form.gap(expected, target, size)
        return self.form.reduce(self._of_gap(axis.value, gap))

    def budget_penalty(self, expected: Tensor, budget: float, size: int) -> Tensor:
        """The penalty of a parameter count, whatever the shape, a scalar.

        Args:
            expected: expected parameters, a scalar.
            budget: parameters that the model may have at this point of the sparsity warmup.
            size: parameters of the source.
        """
        return self._of_gap(self.BUDGET, (expected - budget) / size).sum()

    def _of_gap(self, name: str, gap: Tensor) -> Tensor:
        return self.linear[name] * gap + self.quadratic[name] * gap.square()

    def by_rate(
        self, linear: float, quadratic: float
    ) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
        """Groups of multipliers with the same learning rate: (kind, rate, multipliers).

        Args:
            linear: learning rate of the linear multipliers of a gap in fractions.
            quadratic: learning rate of the quadratic ones.
        """
        kinds = (("linear", self.linear, linear), ("quadratic", self.quadratic, quadratic))
        for number, (kind, multipliers, rate) in enumerate(kinds):
            groups: dict[int, list[nn.Parameter]] = {}
            for name, multiplier in multipliers.items():
                groups.setdefault(self.divisors[name][number], []).append(multiplier)
            for divisor, members in groups.items():
                yield kind, rate / divisor, members

    def snapshot(self, axes: Iterable[Axis]) -> dict[str, dict[Axis, Tensor]]:
        """Copies of the multipliers per kind and axis, for the log."""
        kinds = {"linear": self.linear, "quadratic": self.quadratic}
        return {
            kind: {axis: values[axis.value].detach().clone() for axis in axes}
            for kind, values in kinds.items()
        }
