"""Masks driven to a number of parameters, which leads to a shape during the run."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget, shape_within
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, sized
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.settings import PruningSettings

log = logging.getLogger(__name__)


class BudgetMasks(Masks):
    """Masks whose target is a budget until the schedule fixes a shape.

    At first only the expected parameter count is constrained. When the schedule says so, the shape
    within the budget that is nearest to the expected sizes becomes the target, and from then on it
    drives the masks.

    Args:
        budget: the parameters that the model may have, and the axes that may shrink.
        table, settings, seed, scores: as for `Masks`.

    Attributes:
        chosen: the sizes of the fixed shape, in the order of the axes; zeros before. A checkpoint
            stores it, so a resumed run has the same shape.
    """

    chosen: Tensor

    def __init__(
        self,
        table: CouplingTable,
        budget: Budget,
        settings: PruningSettings,
        seed: int,
        scores: Scores | None = None,
    ) -> None:
        super().__init__(table, None, settings, seed, scores, axes=budget.axes)
        self.budget = budget
        self.source_parameters = table.parameter_count(table.source)
        self.register_buffer("chosen", torch.zeros(len(self.axes), dtype=torch.int64))

    def set_state(self, state: MaskState, noise_stream: int = 0) -> None:
        """Move to another step; fix the shape if it is time."""
        super().set_state(state, noise_stream)
        if self.target is None and state.shaped:
            self._fix_shape()

    def target_now(self, axis: Axis) -> float:
        """Units to keep; the ramp has moved the parameters, and the shape followed from them."""
        return self.target_sizes[axis]

    def sizes_now(self) -> dict[Axis, int]:
        """Whole units to keep; before the shape is fixed, those within the budget of this step."""
        shape = self.target or self._shape_within(self._budget_now())
        return {axis: self.table.sizes(shape)[axis] for axis in self.axes}

    def _constraint(self, expected: Mapping[Axis, Tensor], parameters: Tensor) -> Tensor:
        """The Lagrangian of the budget, or of the shape once it is fixed; a scalar."""
        shape = super()._constraint(expected, parameters)
        size = self.source_parameters
        budget = self.multipliers.budget_penalty(parameters, self._budget_now(), size)
        # Both stay in the graph: DDP and FSDP expect a gradient of every parameter.
        return budget + 0.0 * shape if self.target is None else shape + 0.0 * budget

    def _budget_now(self) -> float:
        """Parameters that the model may have at this point of the sparsity warmup."""
        source = self.source_parameters
        return source + self.state.ramp * (self.budget.parameters - source)

    def _shape_within(self, parameters: float) -> Shape:
        """The shape with at most that many parameters that is nearest to the expected sizes."""
        keep = self.keep_probabilities()
        expected = {axis: p.sum(-1).mean().item() for axis, p in keep.items()}
        budget = replace(self.budget, parameters=round(parameters))
        return shape_within(self.table, budget, expected)

    def _fix_shape(self) -> None:
        """Make the current shape within the budget, or the one of a resumed run, the target."""
        if not self.chosen.any():
            sizes = self.table.sizes(self._shape_within(self.budget.parameters))
            self.chosen.copy_(torch.tensor([sizes[axis] for axis in self.axes]))
        sizes = self.sizes | dict(zip(self.axes, self.chosen.tolist(), strict=True))
        self.target = sized(self.table.source, sizes, grouped=self.table.grouped)
        log.info("the budget's shape: %s", self.target)


def build_masks(
    table: CouplingTable,
    target: Shape | Budget,
    settings: PruningSettings,
    seed: int,
    scores: Scores | None = None,
) -> Masks:
    """The masks of a run, for a target shape or a budget."""
    if isinstance(target, Budget):
        return BudgetMasks(table, target, settings, seed, scores)
    return Masks(table, target, settings, seed, scores)
