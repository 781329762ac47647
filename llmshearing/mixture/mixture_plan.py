"""The mixture plan: which weights hold from which sample on, and the domain of each sample.

Within a segment of constant weights, Tijdeman's rule for the chairman assignment problem (Discrete
Mathematics 32, 1980) picks the domains, in integers: after any n samples of the segment each of k
domains has had weight * n of them, up to 1 - 1/(2k - 2).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from llmshearing.mixture.policies import check_weights

SCALE = 1 << 30  # weights are whole multiples of 1 / SCALE; products stay exact in float64


@dataclass(frozen=True)
class Segment:
    """Weights from a sample on."""

    first: int  # global number of its first sample
    weights: tuple[int, ...]  # per domain, in multiples of 1 / SCALE; they sum to SCALE


@dataclass(frozen=True)
class MixturePlan:
    """The segments of a run, in the order of their first samples; the first starts at 0."""

    segments: tuple[Segment, ...]

    @classmethod
    def start(cls, weights: ArrayLike) -> "MixturePlan":
        """A plan of one segment; for the weights see `quantised`."""
        return cls((Segment(0, quantised(weights)),))

    def append(self, first: int, weights: ArrayLike) -> "MixturePlan":
        """The plan with other weights from sample `first` on, not before its last segment."""
        last = self.segments[-1]
        if first < last.first:
            raise ValueError(f"segment at {first} after one at {last.first}")
        kept = self.segments[:-1] if first == last.first else self.segments
        return replace(self, segments=(*kept, Segment(first, quantised(weights))))

    def at(self, sample: int) -> int:
        """The number of the segment that a sample is in."""
        return bisect_right(self.segments, sample, key=lambda segment: segment.first) - 1

    def shares(self, samples: int) -> np.ndarray:
        """The mean weights over the first `samples` samples [k]."""
        starts = np.array([segment.first for segment in self.segments] + [samples])
        lengths = np.diff(np.minimum(starts, samples)) if samples else np.eye(len(starts) - 1)[0]
        weights = np.array([segment.weights for segment in self.segments]) / SCALE
        return lengths @ weights / lengths.sum()

    def state_dict(self) -> list[list[int]]:
        """Plain lists: first sample and weights of each segment."""
        return [[segment.first, *segment.weights] for segment in self.segments]

    @classmethod
    def from_state(cls, state: Sequence[Sequence[int]]) -> "MixturePlan":
        """The plan that `state_dict` gave."""
        return cls(tuple(Segment(int(first), tuple(map(int, rest))) for first, *rest in state))


def quantised(weights: ArrayLike) -> tuple[int, ...]:
    """Weights, if they sum to 1, in multiples of 1 / SCALE, rounded by largest remainders."""
    weights = np.asarray(weights, np.float64)
    check_weights(weights)
    return _apportioned(weights / weights.sum())


def reweighted(weights: Sequence[int], available: Sequence[bool]) -> tuple[int, ...]:
    """Quantised weights of the domains that are still available, scaled up; 0 for the others.

    If the available domains have no weight, they share equally.
    """
    if all(available):
        return tuple(weights)
    if not any(available):
        return (0,) * len(weights)
    kept = np.where(available, weights, 0).astype(np.float64)
    if kept.sum() == 0:
        kept = np.asarray(available, np.float64)
    return _apportioned(kept / kept.sum())


def _apportioned(weights: np.ndarray) -> tuple[int, ...]:
    exact = weights * SCALE
    whole = np.floor(exact).astype(np.int64)
    missing = SCALE - int(whole.sum())
    order = np.argsort(-(exact - whole), kind="stable")
    order = order[weights[order] > 0]
    for i in range(missing):
        whole[order[i % len(order)]] += 1
    return tuple(int(w) for w in whole)


class DomainScheduler:
    """Picks the domain of one sample after the other.

    Weights are quantised, see `SCALE`. The deficit of a domain is what it lacks, weight * n -
    picked, in multiples of 1 / SCALE; all are 0 at the start of a segment.
    """

    def __init__(self, weights: Sequence[int], deficit: Sequence[int]) -> None:
        self.deficit = list(deficit)
        self._terms = [(i, w) for i, w in enumerate(weights) if w > 0]
        slack = SCALE / max(2 * len(self._terms) - 2, 1)
        self._eligible, self._deadline = slack, SCALE - slack

    def pick(self) -> int:
        """The next sample's domain: of those that may come, the one that must come soonest."""
        deficit, best, soonest = self.deficit, -1, float("inf")
        for i, weight in self._terms:
            deficit[i] += weight
            if deficit[i] >= self._eligible:
                time_left = (self._deadline - deficit[i]) / weight
                if time_left < soonest:
                    best, soonest = i, time_left
        deficit[best] -= SCALE
        return best
