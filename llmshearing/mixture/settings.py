"""The `mixture` section of a recipe: which data in which proportion, and how that changes."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_serializer

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_file import read_mixture
from llmshearing.mixture.policies import TOLERANCE, Limits, bounded
from llmshearing.mixture.sampler import DomainSource
from llmshearing.quantities import Count, Fraction, NotNegative, Steps
from llmshearing.typed_yaml import PathText, Section

NEEDS_REFERENCES = ("paper", "released")
UsedUp = Literal["repeat", "stop", "drop"]
Passes = Annotated[int, Field(ge=0, lt=1 << 31)]


class DomainSettings(Section):
    """What differs for one domain; what is not given is as in the `mixture` section."""

    eta: NotNegative | None = None
    """Step size on its excess loss."""
    floor: Fraction | None = None
    """Its smallest weight."""
    ceiling: Fraction | None = None
    """Its largest weight."""
    used_up: UsedUp | None = None
    """What happens once its rows have all been used."""
    max_passes: Passes | None = None
    """Passes over its rows."""

    @model_serializer
    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}


class MixtureSettings(Section):
    """Dynamic batch loading."""

    policy: Literal["constant", "paper", "released", "dro"] = "constant"
    """How the weights change: the paper's rule, the released code's, or a robust one."""
    weights: dict[str, NotNegative] = Field(default_factory=dict)
    """Weight of each domain at the start; by default its share of rows."""
    start_from: PathText | None = None
    """A mixture file that gives the weights at the start instead."""
    start_with: Literal["weights", "shares"] = "weights"
    """What to take from it: `weights`, its last ones, or `shares`, the realised ones."""
    references: PathText | None = None
    """A file with the loss to reach in each domain."""
    signal: Literal["held_out", "train"] = "held_out"
    """`held_out` takes the last evaluation's losses, `train` the mean training loss since the last
    update, which costs nothing."""
    update_interval: Steps = "50ba"
    """Steps between updates; an evaluation need not fall on them."""
    first_update: Count = 1
    """The first update comes after this many intervals."""
    eta: NotNegative = 1.0
    """Step size on the excess loss."""
    floor: Fraction = 0.0
    """Smallest weight of any domain."""
    ceiling: Fraction = 1.0
    """Largest weight of any domain."""
    prior_share: Fraction = 0.0
    """Part of the starting weights that every update mixes back in."""
    radius: NotNegative = 0.1
    """Of the chi-square ball around the starting weights, for `dro`."""
    used_up: UsedUp = "repeat"
    """What happens once a domain's rows have all been used: `repeat` them in another order, `stop`
    the run, or `drop` the domain and share out its weight."""
    max_passes: Passes = 0
    """Passes over a domain's rows; 0 means no limit for `repeat`, and one pass for `stop` and
    `drop`. A domain that repeats up to a limit stops the run there."""
    prefetch: int = Field(default=4, ge=0, lt=1 << 31)
    """Batches that may be read ahead. An update takes effect after them, for any number of workers,
    so that the order of the data does not depend on that number."""
    window: Count = 8
    """Shards of a domain whose rows are shuffled together."""
    patience: Count = 10
    """Updates without progress after which a warning names a domain."""
    domains: dict[str, DomainSettings] = Field(default_factory=dict)
    """What differs for single domains, with the keys of `DomainSettings`."""

    def rules(self) -> list[str]:
        """Check the two ways to say where the mixture starts."""
        if self.weights and self.start_from:
            return ["mixture: found both weights and start_from, expected one of them"]
        return sum_errors("mixture.weights", self.weights) if self.weights else []


def problems(settings: MixtureSettings, domains: Sequence[str]) -> list[str]:
    """Errors that show once the names of the domains are known."""
    errors = name_errors("mixture.domains", settings.domains, domains, complete=False)
    if settings.weights:
        errors += name_errors("mixture.weights", settings.weights, domains)
    if settings.policy in NEEDS_REFERENCES and not settings.references:
        errors.append(
            f"mixture.references: policy {settings.policy} needs the loss to reach in each domain; "
            "give a file made by `llmshearing reference-loss`"
        )
    if errors:
        return errors
    floor, ceiling = _each(settings, domains, "floor"), _each(settings, domains, "ceiling")
    errors = [
        f"mixture: domain {name} has floor {low:g} above its ceiling {high:g}"
        for name, low, high in zip(domains, floor, ceiling, strict=True)
        if low > high
    ]
    if floor.sum() > 1:
        errors.append(f"mixture.floor: the floors sum to {floor.sum():g}, expected at most 1")
    if ceiling.sum() < 1:
        errors.append(
            f"mixture.ceiling: the ceilings sum to {ceiling.sum():g}, expected at least 1"
        )
    return errors


def sum_errors(key: str, weights: Mapping[str, float]) -> list[str]:
    """What is wrong with the sum of given weights."""
    total = sum(weights.values())
    if min(weights.values()) >= 0 and abs(total - 1) <= TOLERANCE:
        return []
    return [f"{key}: found a sum of {total:g}, expected weights from 0 that sum to 1; scale them"]


def name_errors(
    key: str, given: Mapping[str, Any], domains: Sequence[str], *, complete: bool = True
) -> list[str]:
    """Domains that are unknown or, where the entries have to be complete, missing."""
    errors = []
    for name in given:
        if name not in domains:
            near = get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the data has {', '.join(domains)}"
            errors.append(f"{key}: unknown domain {name}; {hint}")
    if complete and (missing := [name for name in domains if name not in given]):
        errors.append(f"{key}: no entry for {', '.join(missing)}; expected one for each domain")
    return errors


def limits(settings: MixtureSettings, domains: Sequence[str], prior: ArrayLike) -> Limits:
    """The bounds of the policy, in the domains' order."""
    return Limits(
        eta=_each(settings, domains, "eta"),
        floor=_each(settings, domains, "floor"),
        ceiling=_each(settings, domains, "ceiling"),
        prior=np.asarray(prior, np.float64),
        prior_share=settings.prior_share,
        radius=settings.radius,
    )


def domain_source(settings: MixtureSettings, name: str, rows: int, block: int) -> DomainSource:
    """A domain's rows with what happens once they are used up."""
    own = settings.domains.get(name, DomainSettings())
    used_up = own.used_up or settings.used_up
    most = settings.max_passes if own.max_passes is None else own.max_passes
    passes = most or (None if used_up == "repeat" else 1)
    return DomainSource(name, rows, block, passes, "drop" if used_up == "drop" else "stop")


def _each(settings: MixtureSettings, domains: Sequence[str], key: str) -> np.ndarray:
    own = [getattr(settings.domains.get(name), key, None) for name in domains]
    values = [getattr(settings, key) if value is None else value for value in own]
    return np.array(values, np.float64)


def starting_weights(
    settings: MixtureSettings, domains: Sequence[str], rows: Sequence[int]
) -> np.ndarray:
    """Weights at the start within their bounds; a UserError if a mixture file does not fit."""
    given = settings.weights or dict(zip(domains, np.divide(rows, sum(rows)), strict=True))
    if where := settings.start_from:
        given = read_mixture(where, settings.start_with)
        if errors := name_errors(where, given, domains) + sum_errors(where, given):
            raise UserError("; ".join(errors))
    weights = np.array([given[name] for name in domains], np.float64)
    floor, ceiling = _each(settings, domains, "floor"), _each(settings, domains, "ceiling")
    if ((weights >= floor) & (weights <= ceiling)).all():
        return weights
    return bounded(weights, floor, ceiling)
