"""The Lagrangian that drives expected sizes to the target (paper, section 2.1, equations 1 and 2).

Each axis adds lambda * gap + phi * gap^2 to the loss, where the gap is the expected size less the
target. Weights and masks minimise the sum; the multipliers lambda (linear) and phi (quadratic)
maximise it, so they grow for as long as a gap remains.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import Axis

BUDGET = "budget"  # the name of the multipliers of a parameter count


class Multipliers(nn.Module):
    """The linear and quadratic Lagrange multipliers, all 0 at the start.

    In the paper's form a gap is a number of units, each layer of a per-layer axis has its own pair
    of multipliers, and penalties are summed over layers. In the released code's form a gap is a
    fraction of the source's size, all layers share a pair, and penalties are averaged over layers.

    The optimizer groups of multipliers set `maximize`. Each multiplier has one dimension, because
    FSDP does not accept parameters without dimensions.

    `sizes` are the source's, of the axes that shrink. `budget` adds a pair of multipliers for the
    parameter count of the whole model.
    """

    def __init__(
        self,
        form: Literal["paper", "released"],
        sizes: Mapping[Axis, int],
        layers: int,
        *,
        budget: bool = False,
    ) -> None:
        super().__init__()
        self.as_in_paper = form == "paper"
        pairs = {a.value: layers if self.as_in_paper and a.per_layer else 1 for a in sizes}
        units = {a.value: size if self.as_in_paper else 1 for a, size in sizes.items()}
        if budget:  # its gap is a fraction in both forms
            pairs[BUDGET] = units[BUDGET] = 1
        # Adam's step does not depend on the scale of the gap. Dividing the learning rates by these
        # factors makes both forms pull equally hard.
        self.rate_divisors = {n: (pairs[n] * units[n], pairs[n] * units[n] ** 2) for n in pairs}
        self.linear = nn.ParameterDict({name: torch.zeros(n) for name, n in pairs.items()})
        self.quadratic = nn.ParameterDict({name: torch.zeros(n) for name, n in pairs.items()})

    def penalty(self, axis: Axis, expected: Tensor, target: float, size: int) -> Tensor:
        """The penalty of one axis, a scalar, from expected kept units [L] or [1].

        `target` are the units to keep at this point of the sparsity warmup, `size` those of the
        source.
        """
        gap = expected - target if self.as_in_paper else (expected - target) / size
        penalties = self._of_gap(axis.value, gap)
        return penalties.sum() if self.as_in_paper else penalties.mean()

    def budget_penalty(self, expected: Tensor, budget: float, size: int) -> Tensor:
        """The penalty of an expected parameter count, whatever the shape; all are scalars.

        `budget` are the parameters that the model may have at this point of the sparsity warmup,
        `size` those of the source.
        """
        return self._of_gap(BUDGET, (expected - budget) / size).sum()

    def _of_gap(self, name: str, gap: Tensor) -> Tensor:
        return self.linear[name] * gap + self.quadratic[name] * gap.square()

    def by_rate(
        self, linear: float, quadratic: float
    ) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
        """Groups of multipliers with the same learning rate: (kind, rate, multipliers).

        The given rates are those for gaps in fractions.
        """
        kinds = (("linear", self.linear, linear), ("quadratic", self.quadratic, quadratic))
        for number, (kind, multipliers, rate) in enumerate(kinds):
            groups: dict[int, list[nn.Parameter]] = {}
            for name, multiplier in multipliers.items():
                groups.setdefault(self.rate_divisors[name][number], []).append(multiplier)
            for divisor, members in groups.items():
                yield kind, rate / divisor, members

    def snapshot(self, axes: Iterable[Axis]) -> dict[str, dict[Axis, Tensor]]:
        """Copies of the multipliers per kind and axis, for the log."""
        kinds = {"linear": self.linear, "quadratic": self.quadratic}
        return {
            kind: {axis: values[axis.value].detach().clone() for axis in axes}
            for kind, values in kinds.items()
        }
