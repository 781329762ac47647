"""Memory that stays between steps: parameters, gradients and optimizer state, exact in bytes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape

FLOAT32 = 4  # master weights, masks, gradients and both moments, whatever the precision
STEP_COUNTER = 4  # AdamW keeps a float32 scalar for each tensor

Target = Shape | Budget | None  # of pruning; None without


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one rank."""

    parameters: int  # of the decoder
    masks: int  # parameters of masks and multipliers
    gradients: int  # of all of them
    optimizer: int  # both moments and step counters of all of them

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.masks + self.gradients + self.optimizer


def pruned_axes(table: CouplingTable, target: Target) -> tuple[Axis, ...]:
    """The axes that shrink. Each has a mask."""
    if target is None:
        return ()
    if isinstance(target, Budget):
        return target.axes
    source, wanted = table.sizes(table.source), table.sizes(target)
    return tuple(axis for axis in source if wanted[axis] < source[axis])


def exported_parameters(table: CouplingTable, target: Target) -> int:
    """Parameters of the exported model; for a budget, the most it may have."""
    if isinstance(target, Budget):
        return target.parameters
    return table.parameter_count(target or table.source)


def mask_shapes(table: CouplingTable, target: Target, constraint: str) -> list[tuple[int, ...]]:
    """Shapes of the mask logits, the linear and the quadratic multipliers.

    The constraint `paper` has multipliers for every layer, `released` one pair per axis.
    """
    sizes, layers = table.sizes(table.source), table.source.layers
    logits: list[tuple[int, ...]] = []
    multipliers: list[tuple[int, ...]] = []
    for axis in pruned_axes(table, target):
        logits.append((layers, sizes[axis]) if axis.per_layer else (sizes[axis],))
        pairs = layers if axis.per_layer and constraint == "paper" else 1
        multipliers += [(pairs,), (pairs,)]
    if isinstance(target, Budget):
        multipliers += [(1,), (1,)]
    return logits + multipliers


def local_elements(shape: tuple[int, ...], shards: int, rank: int = 0) -> int:
    """Elements of a tensor on one of the ranks that share it.

    FSDP2 cuts the first dimension as `torch.chunk` does: parts of equal size, the last ones short
    or empty.
    """
    rows, rest = shape[0], math.prod(shape[1:])
    part = math.ceil(rows / shards)
    return max(0, min(part, rows - part * rank)) * rest


def state_bytes(
    table: CouplingTable,
    target: Target,
    constraint: str,
    shards: int = 1,
    rank: int = 0,
) -> StateBytes:
    """The state of one of the ranks that share each tensor, after the first optimizer step.

    The first rank has the most. The number of multipliers depends on the constraint.
    """
    weights = list(table.tensor_shapes(table.source).values())
    masks = mask_shapes(table, target, constraint)
    own, extra = _local(weights, shards, rank), _local(masks, shards, rank)
    counters = STEP_COUNTER * (len(weights) + len(masks))
    return StateBytes(
        parameters=FLOAT32 * own,
        masks=FLOAT32 * extra,
        gradients=FLOAT32 * (own + extra),
        optimizer=2 * FLOAT32 * (own + extra) + counters,
    )


def _local(shapes: Iterable[tuple[int, ...]], shards: int, rank: int) -> int:
    return sum(local_elements(shape, shards, rank) for shape in shapes)
