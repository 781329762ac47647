"""How much of each domain a run will use, and has used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmshearing.mixture.sampler import DomainSource, Sampler
from llmshearing.tables import Table


@dataclass(frozen=True)
class Use:
    """Expected use of a domain."""

    source: DomainSource
    weight: float  # as it is now
    used: int  # samples already used
    samples: float  # still to come

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
    """The use of each domain in the next `samples` samples if the weights stay as they are."""
    shares = np.asarray(weights, np.float64).tolist()
    return [
        Use(source, weight, before, weight * samples)
        for source, weight, before in zip(sources, shares, used or [0] * len(sources), strict=True)
    ]


def realised(sampler: Sampler, sample: int, sequence_length: int) -> dict[str, dict[str, float]]:
    """What was read before `sample`, by domain: `shares`, `tokens` and `passes`.

    A batch must start at `sample`.
    """
    used = [*zip(sampler.sources, sampler.cursor_at(sample).positions, strict=True)]
    return {
        "shares": {source.name: count / max(sample, 1) for source, count in used},
        "tokens": {source.name: count * sequence_length for source, count in used},
        "passes": {source.name: count / source.rows for source, count in used},
    }


def by_domain(domains: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Values [k] by the domains' names."""
    return dict(zip(domains, values.tolist(), strict=True))


def as_metrics(kinds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Values by kind and domain, as `mixture/KIND/DOMAIN`."""
    return {
        f"mixture/{kind}/{name}": value
        for kind, values in kinds.items()
        for name, value in values.items()
    }


def use_table(uses: Sequence[Use], sequence_length: int) -> Table:
    """One line per domain."""
    lines = []
    for use in uses:
        source, note = use.source, ""
        if not use.fits:
            what = "dropped" if source.then == "drop" else "the run stops"
            passes = "1 pass" if source.passes == 1 else f"{source.passes} passes"
            note = f"used up: {what} after {passes}"
        counts = (source.rows, source.rows * sequence_length)
        weight, expected = f"{use.weight:.4f}", f"{round(use.used + use.samples):,}"
        cells = (*(f"{n:,}" for n in counts), weight, expected, f"{use.passes:.2f}", note)
        lines.append((source.name, *cells))
    return Table("", ("domain", "rows", "tokens", "weight", "expected", "passes", ""), lines)
