"""How much of each domain a run will use, shown before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmshearing.mixture.sampler import DomainSource, Sampler
from llmshearing.tables import Table


@dataclass(frozen=True)
class Use:
    """Expected use of a domain.

    Attributes:
        source: the domain.
        weight: its assumed weight.
        used: samples already used.
        samples: samples still to come.
    """

    source: DomainSource
    weight: float
    used: int
    samples: float

    @property
    def passes(self) -> float:
        """Passes over the domain's rows at the end."""
        return (self.used + self.samples) / self.source.rows

    @property
    def fits(self) -> bool:
        """Whether the rows are enough."""
        return self.used + self.samples <= self.source.limit


def expected_use(
    sources: Sequence[DomainSource],
    weights: ArrayLike,
    samples: int,
    used: Sequence[int] | None = None,
) -> list[Use]:
    """The use of each domain if its weight stays as it is.

    Args:
        sources: the domains.
        weights: [k], which sum to 1.
        samples: samples to come over all domains.
        used: samples already used, per domain.
    """
    used = used or [0] * len(sources)
    shares = np.asarray(weights, np.float64).tolist()
    return [
        Use(source, weight, before, weight * samples)
        for source, weight, before in zip(sources, shares, used, strict=True)
    ]


def realised(sampler: Sampler, sample: int, sequence_length: int) -> dict[str, dict[str, float]]:
    """What was read before a sample, by domain: `shares`, `tokens` and `passes`.

    Args:
        sampler: of the run; a batch starts at `sample`.
        sample: the first sample that does not count.
        sequence_length: tokens in a row.
    """
    shares, tokens, passes = {}, {}, {}
    for source, used in zip(sampler.sources, sampler.cursor_at(sample).positions, strict=True):
        shares[source.name] = used / max(sample, 1)
        tokens[source.name] = used * sequence_length
        passes[source.name] = used / source.rows
    return {"shares": shares, "tokens": tokens, "passes": passes}


def use_table(uses: Sequence[Use], sequence_length: int) -> Table:
    """One line per domain.

    Args:
        uses: see `expected_use`.
        sequence_length: tokens in a row.
    """
    lines = [
        (
            use.source.name,
            f"{use.source.rows:,}",
            f"{use.source.rows * sequence_length:,}",
            f"{use.weight:.4f}",
            f"{round(use.used + use.samples):,}",
            f"{use.passes:.2f}",
            "" if use.fits else f"used up: {_consequence(use.source)}",
        )
        for use in uses
    ]
    return Table("", ("domain", "rows", "tokens", "weight", "expected", "passes", ""), lines)


def _consequence(source: DomainSource) -> str:
    passes = "1 pass" if source.passes == 1 else f"{source.passes} passes"
    what = "dropped" if source.then == "drop" else "the run stops"
    return f"{what} after {passes}"
