"""The rules by which domain weights follow losses: pure functions by name, within bounds.

Source: Algorithm 1 of the Sheared LLaMA paper (arXiv 2310.06694) and its released code; `dro`
follows DRPruning (arXiv 2411.14055).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.errors import UserError

Vector = NDArray[np.float64]

RELEASED_SMOOTHING = 1e-4  # `c` of the released code
TOLERANCE = 1e-6  # of weights that should sum to 1
NEGLIGIBLE = 1e-9  # nats between domains that count as equally far from their references


@dataclass(frozen=True)
class Limits:
    """The bounds of a policy's step, per domain [k]."""

    eta: Vector  # step size on the excess loss
    floor: Vector  # smallest weight
    ceiling: Vector  # largest weight
    prior: Vector  # weights to mix back to
    prior_share: float = 0.0  # how much of the prior is mixed in, from 0 to 1
    radius: float = 0.1  # of the chi-square ball around the prior; only `dro` uses it

    @classmethod
    def none(cls, prior: ArrayLike) -> "Limits":
        """No bounds, a step size of 1."""
        prior = np.asarray(prior, np.float64)
        one = np.ones_like(prior)
        return cls(one, 0 * one, one, prior)


Rule = Callable[[Vector, Vector, Vector, Limits], Vector]


def update(
    name: str, weights: ArrayLike, losses: ArrayLike, references: ArrayLike, limits: Limits
) -> Vector:
    """The next weights [k] by the policy `name`: they sum to 1, within floor and ceiling.

    Losses and `references`, the losses to reach, are in nats per token [k].

    Raises:
        UserError: no such policy; weights that do not sum to 1; a loss or a reference that is
            negative or not finite.
    """
    weights, losses, references = (np.asarray(x, np.float64) for x in (weights, losses, references))
    if name not in POLICIES:
        raise UserError(f"found policy {name!r}, expected one of {', '.join(POLICIES)}")
    check_weights(weights)
    for what, values in (("losses", losses), ("reference losses", references)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise UserError(f"found {what} {values.tolist()}, expected finite numbers, 0 or more")
    moved = POLICIES[name](weights, losses, references, limits)
    if name != "constant":
        moved = (1 - limits.prior_share) * moved + limits.prior_share * limits.prior
    return bounded(moved, limits.floor, limits.ceiling)


def check_weights(weights: ArrayLike) -> None:
    """Refuse weights that are not probabilities with a UserError."""
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError(f"found weights {weights.tolist()}, expected finite numbers, 0 or more")
    if abs(weights.sum() - 1) > TOLERANCE:
        raise UserError(f"found weights that sum to {weights.sum():g}, expected 1: scale them")


def bounded(weights: Vector, floor: Vector, ceiling: Vector) -> Vector:
    """Weights within bounds that sum to 1; those strictly within them keep their ratios.

    The result is clip(s * weights, floor, ceiling) [k] for the scale s at which it sums to 1. The
    floors sum to at most 1, the ceilings to at least 1.
    """
    if (weights >= floor).all() and (weights <= ceiling).all() and abs(weights.sum() - 1) < 1e-15:
        return weights
    if np.where(weights > 0, ceiling, floor).sum() < 1:  # weights of 0 must take the rest
        weights = np.maximum(weights, 1e-12)
    positive = weights > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        marks = np.concatenate([floor[positive], ceiling[positive]]) / np.tile(weights[positive], 2)
    marks = np.unique(np.concatenate([[0.0], marks[np.isfinite(marks)]]))
    sums = np.clip(marks[:, None] * weights, floor, ceiling).sum(1)
    at = int(np.searchsorted(sums, 1.0))
    if at == 0:
        scale = marks[0]
    elif at == len(marks):
        scale = marks[-1]
    else:  # the sum is linear between two marks
        part = (1 - sums[at - 1]) / (sums[at] - sums[at - 1])
        scale = marks[at - 1] + part * (marks[at] - marks[at - 1])
    clipped = np.clip(scale * weights, floor, ceiling)
    return clipped / clipped.sum()


def _paper(weights: Vector, losses: Vector, references: Vector, limits: Limits) -> Vector:
    """Algorithm 1: w * exp(eta * max(loss - reference, 0)), normalised."""
    return _tilted(weights, limits.eta * np.maximum(losses - references, 0))


def _released(weights: Vector, losses: Vector, references: Vector, limits: Limits) -> Vector:
    """The released code: the excess unclamped, and a little of the uniform mixture."""
    moved = _tilted(weights, limits.eta * (losses - references))
    return (1 - RELEASED_SMOOTHING) * moved + RELEASED_SMOOTHING / len(weights)


def _robust(weights: Vector, losses: Vector, references: Vector, limits: Limits) -> Vector:
    """The worst mixture within a chi-square ball around the prior, as in DRPruning.

    argmax over q of sum(q * excess), for sum((q - prior)^2 / prior) <= radius, sum(q) = 1 and
    floor <= q <= ceiling. The solution is q = clip(prior * (1 + (excess - level) / cost), ...):
    bisection finds the cost of leaving the prior, and the sum determines the level.
    """
    del weights
    excess = limits.eta * (losses - references)
    excess = excess - excess.max()  # only differences matter
    spread = -float(excess.min())
    if limits.radius == 0 or spread < NEGLIGIBLE:
        return limits.prior

    def mixture(cost: float) -> Vector:
        return _levelled(limits.prior, excess / cost, limits.floor, limits.ceiling)

    low, high = 1e-6 * spread, 1e9 * spread
    if _chi_square(mixture(low), limits.prior) <= limits.radius:
        return mixture(low)
    for _ in range(60):
        middle = (low * high) ** 0.5
        if _chi_square(mixture(middle), limits.prior) <= limits.radius:
            high = middle
        else:
            low = middle
    return mixture(high)


def _levelled(prior: Vector, gain: Vector, floor: Vector, ceiling: Vector) -> Vector:
    """clip(prior * (1 + gain - level), floor, ceiling) at the level where it sums to 1.

    The sum falls with the level, linearly between levels at which a domain reaches a bound.
    """
    known = prior > 0
    reached = [1 + gain[known] - bound[known] / prior[known] for bound in (ceiling, floor)]
    marks = np.sort(np.concatenate(reached))[::-1]
    sums = np.clip(prior * (1 + gain - marks[:, None]), floor, ceiling).sum(1)
    level = np.interp(1.0, sums, marks)
    mixture = np.clip(prior * (1 + gain - level), floor, ceiling)
    return mixture / mixture.sum()


def _chi_square(mixture: Vector, prior: Vector) -> float:
    known = prior > 0
    return float(((mixture - prior)[known] ** 2 / prior[known]).sum())


def _tilted(weights: Vector, exponents: Vector) -> Vector:
    moved = weights * np.exp(exponents - exponents.max())
    return moved / moved.sum()


POLICIES: dict[str, Rule] = {
    "paper": _paper,
    "released": _released,
    "constant": lambda weights, *_: weights,
    "dro": _robust,
}
