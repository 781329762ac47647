"""What a run remembers of its losses: where they will end, and which no longer fall."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

POINTS = 64
FEWEST_POINTS = 4
EXPONENTS = np.geomspace(0.05, 2.0, 40)


@dataclass
class LossHistory:
    """Losses per domain at a bounded number of points, which get sparser as a run grows."""

    samples: list[int] = field(default_factory=list)  # trained on, at each point
    losses: list[list[float]] = field(default_factory=list)  # nats per token, at each point

    def add(self, sample: int, losses: Sequence[float]) -> None:
        """Add a point. Above `POINTS`, drop every other point of the older half."""
        self.samples.append(int(sample))
        self.losses.append([float(loss) for loss in losses])
        if len(self.samples) > POINTS:
            kept = [*range(0, POINTS // 2, 2), *range(POINTS // 2, len(self.samples))]
            self.samples = [self.samples[i] for i in kept]
            self.losses = [self.losses[i] for i in kept]

    def extrapolate(self, sample: int) -> NDArray[np.float64]:
        """Losses to expect after `sample` samples, per domain [k].

        Fits a / n^b + c to the points since the highest mean loss: before it, masks are being
        learned and the losses rise. With fewer than four points, returns the lowest losses.
        """
        if not self.losses:
            raise ValueError("no losses yet")
        losses = np.array(self.losses)
        start = int(losses.mean(1).argmax())
        after, points = np.array(self.samples[start:], np.float64), losses[start:]
        lowest = points.min(0)
        if len(after) < FEWEST_POINTS:
            return lowest
        fitted = np.array([_fitted(after, column, sample) for column in points.T])
        return np.minimum(fitted, lowest)

    def state_dict(self) -> list[list[float]]:
        """Plain lists: samples and losses of each point."""
        return [[n, *losses] for n, losses in zip(self.samples, self.losses, strict=True)]

    @classmethod
    def from_state(cls, state: Sequence[Sequence[float]]) -> "LossHistory":
        """The history that `state_dict` gave."""
        return cls([int(point[0]) for point in state], [list(point[1:]) for point in state])


def _fitted(samples: NDArray[np.float64], losses: NDArray[np.float64], at: int) -> float:
    """A / at^b + c of the best fit with a, c >= 0, over a grid of b."""
    best, value = float("inf"), float(losses[-1])
    samples = np.maximum(samples, 1.0)
    scale = samples[-1]
    for exponent in EXPONENTS:
        curve = (samples / scale) ** -exponent
        (a, c), residual = nnls(np.stack([curve, np.ones_like(curve)], 1), losses)
        if residual < best:
            best, value = residual, float(a * (max(at, 1) / scale) ** -exponent + c)
    return value


@dataclass
class PlateauDetector:
    """Finds domains that stay above their reference without coming nearer."""

    patience: int  # updates to wait
    excess: list[list[float]] = field(default_factory=list)  # losses above the references

    def add(self, excess: Sequence[float]) -> list[int]:
        """Take an update's excess losses; return the numbers of the domains to warn about."""
        self.excess = [*self.excess, [float(e) for e in excess]][-self.patience - 1 :]
        if len(self.excess) <= self.patience:
            return []
        table = np.array(self.excess)
        plateaued = (table > 0).all(0) & (table[-1] >= table[0])
        if plateaued.any():
            self.excess = self.excess[-1:]  # wait as long before the next warning
        return np.flatnonzero(plateaued).tolist()
