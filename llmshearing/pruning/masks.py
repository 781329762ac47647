"""The learned masks of a run with their multipliers: a small module next to the decoder.

Shape legend: L layers, n units of an axis per layer, d hidden width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, expected_parameter_count
from llmshearing.architecture.shape import Shape
from llmshearing.pruning.constraint import Multipliers
from llmshearing.pruning.distributions import DISTRIBUTIONS
from llmshearing.pruning.mask_report import MaskReport, axis_report
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.scores import Scores, start_logits
from llmshearing.pruning.selection import Kept, decided_gates, decision_penalty, indicator, select
from llmshearing.pruning.settings import LOG_ALPHA_BOUND, PruningSettings

GATE_SCALE = "gate_scale_"  # with an axis, the name of a buffer
START_NOISE = 0.01  # standard deviation; without it, units with equal weights would stay equal

# Far from its threshold the keep probability saturates and the constraint has no gradient. Add this
# much slope; the forward value is unchanged.
LEAST_SLOPE = 0.02


class MaskOutput(NamedTuple):
    """One draw of the masks.

    It is a tuple because FSDP2 looks for the tensors that need its backward hooks in tuples and
    dictionaries. In any other container the masks' gradients would never be reduced.
    """

    gates: dict[Axis, Tensor]  # per axis, [d], [L] or [L, n]
    penalty: Tensor  # the Lagrangian, a scalar
    expected: dict[Axis, Tensor]  # expected kept units per axis, [1] or [L]
    expected_parameters: Tensor  # expected parameters of the model, a scalar
    # per kind (`linear`, `quadratic`) and axis, [1] or [L], without gradient
    multipliers: dict[str, dict[Axis, Tensor]]

    def detached(self) -> "MaskOutput":
        """The same values without their graph, for the log."""
        return MaskOutput(
            {a: g.detach() for a, g in self.gates.items()},
            self.penalty.detach(),
            {a: e.detach() for a, e in self.expected.items()},
            self.expected_parameters.detach(),
            self.multipliers,
        )


class Masks(nn.Module):
    """Mask logits and multipliers of every axis that shrinks, driven to a target shape.

    The trainer's clock arrives through `set_state`, never through the batch. Everything is float32.

    Args:
        table: the source's coupling table.
        target: the shape to reach; None if a subclass finds it during the run.
        settings: how the masks learn.
        seed: seed of the noise.
        scores: the masks start by the magnitude of these; without them all units start alike.
        axes: the axes to mask; by default those that shrink.

    Attributes:
        target: the shape to reach; None while it is not known.
        state: what the schedule asks of the masks now.
        cuts_evaluation: whether evaluation cuts the model to size, as export does. Otherwise every
            unit takes part with its gate. The mask report compares the two.
    """

    def __init__(
        self,
        table: CouplingTable,
        target: Shape | None,
        settings: PruningSettings,
        seed: int,
        scores: Scores | None = None,
        axes: Sequence[Axis] | None = None,
    ) -> None:
        super().__init__()
        self.table, self.target, self.settings, self.seed = table, target, settings, seed
        self.distribution = DISTRIBUTIONS[settings.distribution]
        self.sizes = table.sizes(table.source)
        self.layers = table.source.layers
        shrinking = [a for a in self.sizes if self.target_sizes[a] < self.sizes[a]]
        self.axes = tuple(shrinking if axes is None else axes)
        generator = torch.Generator().manual_seed(seed)
        self.log_alpha = nn.ParameterDict(
            {
                axis.value: torch.full(self.mask_shape(axis), settings.init_log_alpha)
                + START_NOISE * torch.randn(self.mask_shape(axis), generator=generator)
                for axis in self.axes
            }
        )
        self.multipliers = Multipliers(
            settings.constraint,
            {axis: self.sizes[axis] for axis in self.axes},
            self.layers,
            budget=target is None,
        )
        self.state, self.noise_stream = MaskState(), 0
        self.cuts_evaluation = True
        self._noise: tuple[tuple[int, int], dict[Axis, Tensor]] | None = None
        for axis in self.axes:
            self.register_buffer(f"{GATE_SCALE}{axis.value}", torch.ones(self.mask_shape(axis)))
        if scores is not None:
            self.start_from(scores)

    def start_from(self, scores: Scores) -> None:
        """Start the logits by the magnitude of scores, before the first step; all ranks call it.

        Gates that grow with their logits are scaled so that those of logits of at least 1 are 1:
        training starts with exactly the source's function, whatever the scores.
        """
        start, spread = self.settings.init_log_alpha, self.settings.importance_spread
        for axis, alike in self._whole_logits().items():
            logits = alike + start_logits(scores[axis].to(alike), start, spread) - start
            logits = logits.clamp(max=LOG_ALPHA_BOUND)
            with torch.no_grad():
                _fill(self.log_alpha[axis.value], logits)
            if self.distribution.unit is not None:
                self.gate_scale(axis).copy_(self.distribution.unit / logits.clamp(min=1.0))

    def gate_scale(self, axis: Axis) -> Tensor:
        """The factors on the logits before they become gates, [n] or [L, n]."""
        return self.get_buffer(f"{GATE_SCALE}{axis.value}")

    def mask_shape(self, axis: Axis) -> tuple[int, ...]:
        """[L, n] for the per-layer axes, [n] for the others."""
        return (self.layers, self.sizes[axis]) if axis.per_layer else (self.sizes[axis],)

    def set_state(self, state: MaskState, noise_stream: int = 0) -> None:
        """Move to another step; the stream is the rank if each rank draws its own noise, else 0."""
        self.state, self.noise_stream = state, noise_stream

    @property
    def target_sizes(self) -> dict[Axis, int]:
        """Units to keep in the end; the source's sizes while the target is not known."""
        return self.table.sizes(self.target or self.table.source)

    def target_now(self, axis: Axis) -> float:
        """Units to keep at this point of the sparsity warmup."""
        return self.sizes[axis] + self.state.ramp * (self.target_sizes[axis] - self.sizes[axis])

    def sizes_now(self) -> dict[Axis, int]:
        """Whole units to keep at this point of the sparsity warmup."""
        return {axis: round(self.target_now(axis)) for axis in self.axes}

    def forward(self) -> MaskOutput:
        """Draw the gates and compute the penalty."""
        state = self.state
        logits = {axis: self.log_alpha[axis.value] for axis in self.axes}
        probability = {axis: self._keep_probability(x) for axis, x in logits.items()}
        cut = state.frozen or (self.cuts_evaluation and not self.training)
        kept = select(logits, self.sizes_now()) if cut or state.deciding else {}
        scaled = {axis: x * self.gate_scale(axis) for axis, x in logits.items()}
        gates = (
            decided_gates(self.distribution, scaled, kept, state.sharpness)
            if cut
            else self._soft_gates(scaled)
        )
        if state.frozen:
            # The kept units are fixed, so nothing moves the logits. They stay in the graph: DDP and
            # FSDP expect a gradient of every parameter.
            probability = {a: 0.0 * p + indicator(p, kept[a]) for a, p in probability.items()}
        expected = {axis: p.sum(-1).reshape(-1) for axis, p in probability.items()}
        parameters = self._expected_parameters(expected, probability)
        penalty = self._constraint(expected, parameters)
        if state.deciding:  # the constraint stays in the graph, too
            parts = [
                decision_penalty(x, probability[axis], kept[axis]) for axis, x in logits.items()
            ]
            penalty = 0.0 * penalty + torch.stack(parts).sum()
        multipliers = self.multipliers.snapshot(self.axes)
        return MaskOutput(gates, penalty, expected, parameters, multipliers)

    def _soft_gates(self, logits: Mapping[Axis, Tensor]) -> dict[Axis, Tensor]:
        """The gates of all units: drawn in training, without noise in evaluation."""
        sharpness = self.state.sharpness
        if not self.training:
            return {a: self.distribution.deterministic(x, sharpness) for a, x in logits.items()}
        noise = self._step_noise(next(iter(logits.values())).device)
        return {a: self.distribution.sample(x, noise[a], sharpness) for a, x in logits.items()}

    def _constraint(self, expected: Mapping[Axis, Tensor], parameters: Tensor) -> Tensor:
        """The Lagrangian of all axes, a scalar (paper, equation 2)."""
        del parameters
        penalties = [
            self.multipliers.penalty(axis, expected[axis], self.target_now(axis), self.sizes[axis])
            for axis in self.axes
        ]
        return torch.stack(penalties).sum()

    def clamp_logits(self) -> None:
        """Bring the logits back within their bounds, after an optimizer step."""
        with torch.no_grad():
            for parameter in self.log_alpha.values():
                parameter.clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)

    def report(self) -> MaskReport:
        """How close the masks are to the target now; all ranks call it together."""
        sizes = self.target_sizes
        axes = {a: axis_report(keep, sizes[a]) for a, keep in self.keep_probabilities().items()}
        return MaskReport(axes, self.state.frozen)

    def keep_probabilities(self) -> dict[Axis, Tensor]:
        """Keep probability of each unit, on the CPU; all ranks call it together."""
        sharpness = self.state.sharpness
        logits = self._whole_logits()
        return {a: self.distribution.keep_probability(x, sharpness) for a, x in logits.items()}

    def kept(self) -> Kept:
        """The units that would stay now, on the CPU; all ranks call it together."""
        return select(self._whole_logits(), self.sizes_now())

    def _whole_logits(self) -> dict[Axis, Tensor]:
        """The logits on the CPU, gathered if they are sharded."""
        found = {}
        for axis in self.axes:
            logits = self.log_alpha[axis.value].detach()
            whole = logits.full_tensor() if isinstance(logits, DTensor) else logits
            found[axis] = whole.float().cpu().contiguous()
        return found

    def _keep_probability(self, logits: Tensor) -> Tensor:
        """Keep probability of each unit, with a slope that never vanishes."""
        probability = self.distribution.keep_probability(logits, self.state.sharpness)
        return probability + LEAST_SLOPE * (logits - logits.detach())

    def _expected_parameters(
        self, expected: Mapping[Axis, Tensor], probability: Mapping[Axis, Tensor]
    ) -> Tensor:
        sizes = {axis: expected.get(axis, float(size)) for axis, size in self.sizes.items()}
        some = next(iter(probability.values()))
        layers = probability.get(Axis.LAYER, some.new_ones(self.layers))
        return expected_parameter_count(self.table.rows, sizes, layers).reshape(())

    def _step_noise(self, device: torch.device) -> dict[Axis, Tensor]:
        """Uniform noise keyed by (seed, step, stream).

        All microbatches of a step see the same noise, so a step's result does not depend on how its
        batch is split.
        """
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


def _fill(parameter: nn.Parameter, whole: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole tensor on the CPU."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        whole = distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements)
    parameter.copy_(whole)
