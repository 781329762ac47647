"""What a run will use of each domain, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from llmshearing.mixture.sampler import DomainSource


@dataclass(frozen=True)
class Use:
    """Expected use of a domain.

    Attributes:
        supply: what it has.
        weight: the weight that is assumed to hold.
        used: samples that were used already.
        samples: samples that are still to come.
    """

    supply: DomainSource
    weight: float
    used: int
    samples: float

    @property
    def passes(self) -> float:
        """Passes over the domain's rows at the end."""
        return (self.used + self.samples) / self.supply.rows

    @property
    def fits(self) -> bool:
        """Whether the rows last."""
        return self.used + self.samples <= self.supply.limit


def expected_use(
    supplies: Sequence[DomainSource],
    weights: ArrayLike,
    samples: int,
    used: Sequence[int] | None = None,
) -> list[Use]:
    """What each domain gives if its weight stays as it is.

    Args:
        supplies: the domains.
        weights: [k], which sum to 1.
        samples: samples to come over all domains.
        used: samples that were used already, per domain.
    """
    used = used or [0] * len(supplies)
    shares = [float(weight) for weight in weights]  # type: ignore[union-attr]
    return [
        Use(supply, weight, before, weight * samples)
        for supply, weight, before in zip(supplies, shares, used, strict=True)
    ]


def table(uses: Sequence[Use], sequence_length: int) -> str:
    """Lines for a log or a terminal: one a domain.

    Args:
        uses: see `expected_use`.
        sequence_length: tokens in a row.
    """
    width = max(len("domain"), *(len(use.supply.name) for use in uses))
    lines = [f"{'domain':<{width}}  {'rows':>12}  {'tokens':>15}  weight  {'expected':>12}  passes"]
    for use in uses:
        supply = use.supply
        end = "" if use.fits else f"  used up: {_consequence(supply)}"
        lines.append(
            f"{supply.name:<{width}}  {supply.rows:>12,}  {supply.rows * sequence_length:>15,}  "
            f"{use.weight:.4f}  {round(use.used + use.samples):>12,}  {use.passes:6.2f}{end}"
        )
    return "\n".join(lines)


def _consequence(supply: DomainSource) -> str:
    passes = "1 pass" if supply.passes == 1 else f"{supply.passes} passes"
    what = "dropped" if supply.then == "drop" else "the run stops"
    return f"{what} after {passes}"
