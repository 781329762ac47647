"""The learned masks of a run, with their multipliers: one small module beside the decoder.

Shape legend: L layers, n units of an axis per layer, d hidden width.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget, shape_within, sized
from llmshearing.architecture.coupling import CouplingTable, expected_parameter_count
from llmshearing.architecture.shape import Shape
from llmshearing.pruning.constraint import Multipliers, constraint_of
from llmshearing.pruning.distributions import distribution_of
from llmshearing.pruning.importance import Scores, start_logits
from llmshearing.pruning.mask_report import MaskReport, axis_report
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.selection import (
    Kept,
    decided_gates,
    decision_penalty,
    indicator,
    select,
)
from llmshearing.pruning.settings import PruningSettings

log = logging.getLogger(__name__)

# Logits stay where the gradient of the keep probability has not vanished, so that a unit given up
# early can come back. The start lies inside, or the bound would erase the symmetry-breaking noise.
LOG_ALPHA_BOUND = 5.0
START_NOISE = 0.01
# Far from its step a keep probability is flat, more so when it is sharp, and a constraint that
# misses its target would pull at no unit there. So much slope is added; the value stays.
LEAST_SLOPE = 0.02


def start_errors(settings: PruningSettings) -> list[str]:
    """What is wrong with the logits at which the masks are to start."""
    found = f"pruning.init_log_alpha: found {settings.init_log_alpha}, expected"
    if abs(settings.init_log_alpha) >= LOG_ALPHA_BOUND:
        return [f"{found} within -{LOG_ALPHA_BOUND} and {LOG_ALPHA_BOUND}, the logits' bounds"]
    highest = settings.init_log_alpha + (settings.importance_spread if settings.importance else 0.0)
    off_below = distribution_of(settings.distribution).off_below
    if highest <= off_below:
        return [
            f"{found} above {off_below:g} with the distribution {settings.distribution}, or "
            "pruning.importance and a spread that reaches there: no unit would ever come on"
        ]
    return []


class MaskOutput(NamedTuple):
    """One draw of the masks.

    A tuple, because FSDP2 finds the tensors that need its backward hooks by walking tuples and
    dictionaries; in another container the masks' gradients would never be reduced.

    Attributes:
        gates: per axis, [d], [L] or [L, n].
        penalty: the Lagrangian, a scalar.
        expected: expected kept units per axis, [1] or [L].
        expected_parameters: expected parameters of the model, a scalar.
        multipliers: per kind (`linear`, `quadratic`) and axis, [1] or [L], without gradient.
    """

    gates: dict[Axis, Tensor]
    penalty: Tensor
    expected: dict[Axis, Tensor]
    expected_parameters: Tensor
    multipliers: dict[str, dict[Axis, Tensor]]

    def detached(self) -> MaskOutput:
        """The same values without their graph, for logging."""
        return MaskOutput(
            {a: g.detach() for a, g in self.gates.items()},
            self.penalty.detach(),
            {a: e.detach() for a, e in self.expected.items()},
            self.expected_parameters.detach(),
            self.multipliers,
        )


class Masks(nn.Module):
    """Mask logits and multipliers of every axis that shrinks.

    Args:
        table: the source's coupling table.
        target: the shape to reach, or the parameters that the model may have.
        settings: how masks learn.
        seed: of the noise.
        scores: importance in whose order the masks start; alike for all units where there is none.

    Attributes:
        cuts_evaluation: whether evaluation cuts to size, as export does; otherwise it takes every
            unit with its gate, undecided ones too (the verdict compares the two).
        target: the shape to reach; None while a budget has not come to one.

    The trainer's clock arrives by `set_progress`, never through the batch. Everything is float32.
    """

    chosen: Tensor  # with a budget, the sizes it has come to; zeros until then

    def __init__(
        self,
        table: CouplingTable,
        target: Shape | Budget,
        settings: PruningSettings,
        seed: int,
        scores: Scores | None = None,
    ) -> None:
        super().__init__()
        self.table, self.settings, self.seed = table, settings, seed
        self.distribution = distribution_of(settings.distribution)
        self.sizes = table.sizes(table.source)
        self.budget = target if isinstance(target, Budget) else None
        self.target = target if isinstance(target, Shape) else None
        if self.budget is not None:
            self.axes = self.budget.axes
            self.register_buffer("chosen", torch.zeros(len(self.axes), dtype=torch.int64))
        else:
            self.axes = tuple(a for a in self.sizes if self.target_sizes[a] < self.sizes[a])
        self.layers = table.source.layers
        generator = torch.Generator().manual_seed(seed)
        self.log_alpha = nn.ParameterDict(
            {
                axis.value: self._start(axis, scores)
                + START_NOISE * torch.randn(self.mask_shape(axis), generator=generator)
                for axis in self.axes
            }
        )
        self.multipliers = Multipliers(
            constraint_of(settings.constraint),
            {axis: self.sizes[axis] for axis in self.axes},
            self.layers,
            budget=self.budget is not None,
        )
        self.state, self.noise_stream = MaskState(), 0
        self.cuts_evaluation = True
        self._noise: tuple[tuple[int, int], dict[Axis, Tensor]] | None = None

    def _start(self, axis: Axis, scores: Scores | None) -> Tensor:
        settings = self.settings
        if scores is None:
            return torch.full(self.mask_shape(axis), settings.init_log_alpha)
        return start_logits(scores[axis], settings.init_log_alpha, settings.importance_spread)

    def mask_shape(self, axis: Axis) -> tuple[int, ...]:
        """[L, n] for the per-layer axes, else [n]."""
        return (self.layers, self.sizes[axis]) if axis.per_layer else (self.sizes[axis],)

    def set_progress(self, moment: MaskState, noise_stream: int = 0) -> None:
        """Take over the trainer's clock.

        Args:
            moment: what the schedule asks at this step.
            noise_stream: rank, where each rank draws noise of its own, else 0.
        """
        self.state, self.noise_stream = moment, noise_stream

        if self.target is None and moment.shaped:
            self._choose_shape()

    @property
    def target_sizes(self) -> dict[Axis, int]:
        """Units to keep; the source's while a budget has not come to a shape."""
        return self.table.sizes(self.target or self.table.source)

    def target_now(self, axis: Axis) -> float:
        """Units to keep at this point of the sparsity warmup."""
        if self.budget is not None:  # its parameters have moved, and the shape followed
            return self.target_sizes[axis]
        return self.sizes[axis] + self.state.ramp * (self.target_sizes[axis] - self.sizes[axis])

    def forward(self) -> MaskOutput:
        """Draw the gates: sampled in training; in evaluation deterministic and cut to size."""
        logits = {axis: self.log_alpha[axis.value] for axis in self.axes}
        sharpness, frozen = self.state.sharpness, self.state.frozen
        probability = {a: self._keep_probability(x) for a, x in logits.items()}
        cut = frozen or (self.cuts_evaluation and not self.training)
        kept = select(logits, self.sizes_now()) if cut or self.state.deciding else {}
        if cut:
            gates = decided_gates(self.distribution, logits, kept, sharpness)
        elif self.training:
            noise = self._step_noise(next(iter(logits.values())).device)
            gates = {a: self.distribution.sample(x, noise[a], sharpness) for a, x in logits.items()}
        else:
            gates = {a: self.distribution.deterministic(x, sharpness) for a, x in logits.items()}
        if frozen:
            # The choice is made: nothing pulls at the logits, though all stay in the graph, since
            # DDP and FSDP expect a gradient of every parameter.
            probability = {a: 0.0 * p + indicator(p, kept[a]) for a, p in probability.items()}
        expected = {a: p.sum(-1).reshape(-1) for a, p in probability.items()}
        parameters = self._expected_parameters(expected, probability)
        penalty = self._constraint(expected, parameters)
        if self.state.deciding:  # the constraint stays in the graph, for the same reason
            pulls = [decision_penalty(x, probability[a], kept[a]) for a, x in logits.items()]
            penalty = 0.0 * penalty + torch.stack(pulls).sum()
        return MaskOutput(
            gates, penalty, expected, parameters, self.multipliers.snapshot(self.axes)
        )

    def _constraint(self, expected: Mapping[Axis, Tensor], parameters: Tensor) -> Tensor:
        """The Lagrangian of the shape, or of the budget until it has come to one; a scalar."""
        shape = torch.stack(
            [
                self.multipliers.penalty(a, expected[a], self.target_now(a), self.sizes[a])
                for a in self.axes
            ]
        ).sum()
        if self.budget is None:
            return shape
        budget = self.multipliers.budget_penalty(
            parameters, self._budget_now(), self.table.parameter_count(self.table.source)
        )
        # Both stay in the graph, since DDP and FSDP expect a gradient of every parameter.
        return budget + 0.0 * shape if self.target is None else shape + 0.0 * budget

    def sizes_now(self) -> dict[Axis, int]:
        """Whole units to keep at this point of the sparsity warmup; the target's at its end."""
        if self.budget is not None and self.target is None:
            now = self.table.sizes(self._shape_within(self._budget_now()))
            return {axis: now[axis] for axis in self.axes}
        return {axis: round(self.target_now(axis)) for axis in self.axes}

    def clamp_logits(self) -> None:
        """Keep the logits within their bound; called after each optimizer step."""
        with torch.no_grad():
            for parameter in self.log_alpha.values():
                parameter.clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)

    def report(self) -> MaskReport:
        """What the masks have come to at this moment; gathers them where they are sharded."""
        sizes = self.target_sizes
        found = {a: axis_report(keep, sizes[a]) for a, keep in self.keep_probabilities().items()}
        return MaskReport(found, self.state.frozen)

    def keep_probabilities(self) -> dict[Axis, Tensor]:
        """Probability of each unit to stay, on the host; gathered where the masks are sharded."""
        sharpness = self.state.sharpness
        logits = self._whole_logits()
        return {a: self.distribution.keep_probability(x, sharpness) for a, x in logits.items()}

    def kept(self) -> Kept:
        """The units that stay if the model is cut now, on the host; all ranks call it together."""
        return select(self._whole_logits(), self.sizes_now())

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that descend."""
        return iter(self.log_alpha.values())

    def _keep_probability(self, logits: Tensor) -> Tensor:
        """Probability of each unit to stay, with a slope that does not vanish far from the step."""
        probability = self.distribution.keep_probability(logits, self.state.sharpness)
        return probability + LEAST_SLOPE * (logits - logits.detach())

    def _whole_logits(self) -> dict[Axis, Tensor]:
        found = {}
        for axis in self.axes:
            logits = self.log_alpha[axis.value].detach()
            whole = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
            found[axis] = whole.float().cpu().contiguous()
        return found

    def _budget_now(self) -> float:
        """Parameters that the model may have at this point of the sparsity warmup."""
        assert self.budget is not None
        source = self.table.parameter_count(self.table.source)
        return source + self.state.ramp * (self.budget.parameters - source)

    def _shape_within(self, parameters: float) -> Shape:
        """The shape near the expected sizes that a number of parameters allows."""
        assert self.budget is not None
        keep = self.keep_probabilities()
        expected = {axis: p.sum(-1).mean().item() for axis, p in keep.items()}
        budget = dataclasses.replace(self.budget, parameters=round(parameters))
        return shape_within(self.table, budget, expected)

    def _choose_shape(self) -> None:
        """Fix the shape that the budget has come to, or take the one of a resumed run."""
        assert self.budget is not None
        if not self.chosen.any():
            sizes = self.table.sizes(self._shape_within(self.budget.parameters))
            self.chosen.copy_(torch.tensor([sizes[axis] for axis in self.axes]))
        sizes = self.sizes | dict(zip(self.axes, self.chosen.tolist(), strict=True))
        self.target = sized(self.table.source, sizes, grouped=self.table.grouped)
        log.info("the budget's shape: %s", self.target)

    def _expected_parameters(
        self, expected: Mapping[Axis, Tensor], probability: Mapping[Axis, Tensor]
    ) -> Tensor:
        sizes = {axis: expected.get(axis, float(size)) for axis, size in self.sizes.items()}
        some = next(iter(probability.values()))
        layers = probability.get(Axis.LAYER, some.new_ones(self.layers))
        return expected_parameter_count(self.table.rows, sizes, layers).reshape(())

    def _step_noise(self, device: torch.device) -> dict[Axis, Tensor]:
        """Uniform noise keyed by (seed, step, stream): a step's result cannot depend on its cut."""
        key = (self.state.step, self.noise_stream)
        if self._noise is None or self._noise[0] != key:
            words = np.random.SeedSequence([self.seed, *key])
            generator = torch.Generator().manual_seed(int(words.generate_state(1)[0]))
            epsilon = torch.finfo(torch.float32).eps
            noise = {
                axis: torch.rand(self.mask_shape(axis), generator=generator)
                .clamp(epsilon, 1 - epsilon)
                .to(device, non_blocking=True)
                for axis in self.axes
            }
            self._noise = (key, noise)
        return self._noise[1]
