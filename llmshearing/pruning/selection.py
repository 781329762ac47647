"""The one place that decides which units stay.

Evaluation during pruning, the mask report and export all use it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.distributions import Distribution

# Indices of the kept units in source numbering, ascending: [k] for HIDDEN and LAYER, [L, k] for the
# per-layer axes (one row per source layer). An axis that is absent keeps every unit.
Kept = dict[Axis, Tensor]

# A unit is undecided if its keep probability lies within these bounds.
UNDECIDED = (0.05, 0.95)

# The decision penalty leaves a unit alone once its keep probability is this close to 0 or 1. All
# units of an axis together then miss the target by less than 0.1 %.
SURE = 0.001

# Gradient of the decision penalty. It exceeds by far any gradient of the loss or the constraint in
# Adam's moments, so an unsure unit moves at the full learning rate of the masks.
DECISION_GRADIENT = 100.0

# A kept unit counts in the norms' means, and a weight with a gate of 0 folded in could not be
# trained any more. So the gates of kept units are at least this large.
SMALLEST_KEPT_GATE = 0.1


def select(scores: Mapping[Axis, Tensor], sizes: Mapping[Axis, int]) -> Kept:
    """Keep the units of highest score, [n] or [L, n] per axis, the same number in every layer.

    Returns:
        The kept indices. Among equal scores the lower index stays.
    """
    kept: Kept = {}
    for axis, score in scores.items():
        order = torch.sort(score, dim=-1, descending=True, stable=True).indices
        kept[axis] = order[..., : sizes[axis]].sort(dim=-1).values
    return kept


def indicator(like: Tensor, kept: Tensor) -> Tensor:
    """1 for each kept unit and 0 for all others, in the shape and dtype of `like`."""
    return torch.zeros_like(like).scatter(-1, kept, 1.0)


def count_undecided(probability: Tensor, kept: Tensor) -> int:
    """The number of kept units that are not surely on and of other units that are not surely off.

    Probabilities to stay are [n] or [L, n], indices of the kept units [k] or [L, k].
    """
    low, high = UNDECIDED
    stays = indicator(probability, kept) > 0
    return int(torch.where(stays, probability < high, probability > low).sum())


def decision_penalty(logits: Tensor, probability: Tensor, kept: Tensor) -> Tensor:
    """Push each unsure unit to the side of the target that it is on.

    All unsure units get the same gradient, however flat their keep probability is, so that their
    order does not change.

    Logits and keep probabilities are [n] or [L, n], indices of the units that stay [k] or [L, k].

    Returns:
        A scalar of value 0 that has only a gradient.
    """
    side = 2 * indicator(logits, kept) - 1  # +1 stays, -1 goes
    unsure = torch.where(side > 0, probability < 1 - SURE, probability > SURE).detach()
    return DECISION_GRADIENT * (unsure * side * (logits.detach() - logits)).sum()


def keep_only(gates: Mapping[Axis, Tensor], kept: Kept) -> dict[Axis, Tensor]:
    """Gates of 0 for all units but the kept ones, whose gates are raised to the smallest value."""
    return {
        axis: gate.clamp(min=SMALLEST_KEPT_GATE) * indicator(gate, kept[axis])
        for axis, gate in gates.items()
    }


def decided_gates(
    distribution: Distribution, logits: Mapping[Axis, Tensor], kept: Kept, sharpness: float
) -> dict[Axis, Tensor]:
    """The gates that export folds into the weights: without noise, 0 for units that go."""
    return keep_only({a: distribution.deterministic(x, sharpness) for a, x in logits.items()}, kept)
