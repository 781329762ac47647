"""The one function that decides which units stay.

Evaluation during pruning, the report of a checkpoint and export all call it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.distributions import Distribution

# Indices of the kept units in source numbering, ascending: [n'] for HIDDEN and LAYER, [L, n'] (a
# row for every source layer) for the per-layer axes. An axis that is absent keeps every unit.
Kept = dict[Axis, Tensor]


def select(scores: Mapping[Axis, Tensor], sizes: Mapping[Axis, int]) -> Kept:
    """Keep the units of highest score, as many as the target shape has, in every layer alike.

    Args:
        scores: per axis, [n] or [L, n]; higher stays.
        sizes: units to keep per axis.

    Returns:
        The kept indices. Among equal scores the unit of lower index stays.
    """
    kept: Kept = {}
    for axis, score in scores.items():
        order = torch.sort(score, dim=-1, descending=True, stable=True).indices
        kept[axis] = order[..., : sizes[axis]].sort(dim=-1).values
    return kept


# A mask has made up its mind about a unit whose keep probability lies outside of these.
UNDECIDED = (0.05, 0.95)


def count_undecided(probability: Tensor, kept: Tensor) -> int:
    """Units whose fate the masks leave open: not surely on if they stay, or surely off if not.

    Args:
        probability: of each unit of an axis to stay, [n] or [L, n].
        kept: indices of those that stay, [n'] or [L, n'].
    """
    low, high = UNDECIDED
    stays = torch.zeros_like(probability, dtype=torch.bool).scatter(-1, kept, value=True)
    return int(torch.where(stays, probability < high, probability > low).sum())


# A unit counts as sure once its keep probability is so near to 0 or 1 that all of an axis together
# miss the target by less than a tenth of a percent.
SURE = 0.001

# The pull on a unit that is not sure, large against any gradient that Adam remembers of the loss or
# the constraint, so that the unit moves at the masks' full rate.
PULL = 100.0


def decision_penalty(logits: Tensor, probability: Tensor, kept: Tensor) -> Tensor:
    """A force on the units that are not sure yet, a scalar of value 0 with the force as gradient.

    Every such unit is pulled with the same force to the side that it is on, however flat its keep
    probability is there. The order of the units stays.

    Args:
        logits: of the masks, [n] or [L, n].
        probability: of each unit to stay, in the same shape.
        kept: indices of those that stay, [n'] or [L, n'].
    """
    side = 2 * indicator(logits, kept) - 1  # +1 stays, -1 does not
    unsure = torch.where(side > 0, probability < 1 - SURE, probability > SURE).detach()
    return PULL * (unsure * side * (logits.detach() - logits)).sum()


# A unit that stays takes part, however undecided its mask was: it counts in the norms' means, and a
# gate of 0 folded into weights could not be trained again.
SMALLEST_KEPT_GATE = 0.1


def keep_only(gates: Mapping[Axis, Tensor], kept: Kept) -> dict[Axis, Tensor]:
    """The gates with every unit that does not stay set to 0, and of those that stay none near 0."""
    return {
        axis: gate.clamp(min=SMALLEST_KEPT_GATE) * indicator(gate, kept[axis])
        for axis, gate in gates.items()
    }


def indicator(like: Tensor, kept: Tensor) -> Tensor:
    """1 for each unit that stays and 0 for each other, in the shape and dtype of `like`."""
    return torch.zeros_like(like).scatter(-1, kept, 1.0)


def decided_gates(
    distribution: Distribution, logits: Mapping[Axis, Tensor], kept: Kept, sharpness: float
) -> dict[Axis, Tensor]:
    """The gates without noise of the units that stay, 0 for the others: what export folds in."""
    return keep_only({a: distribution.deterministic(x, sharpness) for a, x in logits.items()}, kept)
