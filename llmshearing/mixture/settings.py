"""The `mixture` section of a recipe: which data in which proportion, and how that changes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llmshearing.errors import UserError
from llmshearing.mixture.policies import POLICIES, TOLERANCE, Limits, bounded
from llmshearing.mixture.sampler import DomainSource

SIGNALS = ("held_out", "train")
USED_UP = ("repeat", "stop", "drop")
NEEDS_REFERENCES = ("paper", "released")


@dataclass
class DomainSettings:
    """What differs for one domain; what is not given is as in the `mixture` section.

    Attributes:
        eta: step size on its excess loss.
        floor: its smallest weight.
        ceiling: its largest weight.
        used_up: `repeat`, `stop` or `drop`.
        max_passes: passes over its rows.
    """

    eta: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    used_up: str | None = None
    max_passes: int | None = None


@dataclass
class MixtureSettings:
    """Dynamic batch loading.

    Attributes:
        policy: `constant`, `paper`, `released` or `dro`.
        weights: weight of each domain at the start; where none is given, its share of rows.
        start_from: a mixture file that gives the weights at the start instead.
        start_with: what to take from it: `weights`, its last ones, or `shares`, what was realised.
        references: a file with the loss to reach in each domain.
        signal: `held_out` takes the last evaluation's losses, `train` the mean training loss since
            the last update, which costs nothing.
        update_interval: steps between updates, e.g. `50ba`; an evaluation need not fall on them.
        first_update: the first update comes after so many intervals.
        eta: step size on the excess loss.
        floor: smallest weight of any domain.
        ceiling: largest weight of any domain.
        prior_share: part of the starting weights that every update mixes back in.
        radius: of the chi-square ball around the starting weights, for `dro`.
        used_up: what happens once a domain's rows have all been used: `repeat` them in another
            order, `stop` the run, or `drop` the domain and share its weight out.
        max_passes: passes over a domain's rows; 0 means no limit to `repeat`, and one pass for
            `stop` and `drop`. A domain that repeats up to a limit stops the run there.
        prefetch: batches that may be read ahead. An update takes effect after them, whatever the
            number of workers, so that the order of the data does not depend on that number.
        window: shards of a domain whose rows are mixed with each other.
        patience: updates without progress after which a domain is named in a warning.
        domains: what differs for single domains, with the keys of `DomainSettings` for each.
    """

    policy: str = "constant"
    weights: dict[str, float] = field(default_factory=dict)
    start_from: str | None = None
    start_with: str = "weights"
    references: str | None = None
    signal: str = "held_out"
    update_interval: str = "50ba"
    first_update: int = 1
    eta: float = 1.0
    floor: float = 0.0
    ceiling: float = 1.0
    prior_share: float = 0.0
    radius: float = 0.1
    used_up: str = "repeat"
    max_passes: int = 0
    prefetch: int = 4
    window: int = 8
    patience: int = 10
    domains: dict[str, Any] = field(default_factory=dict)


def problems(settings: MixtureSettings, domains: Sequence[str]) -> list[str]:
    """Everything that is wrong with the section, given the names of the domains.

    Returns:
        One message per error, each with the key's full name.
    """
    errors = []
    for key, choices in (
        ("policy", tuple(POLICIES)),
        ("signal", SIGNALS),
        ("used_up", USED_UP),
        ("start_with", ("weights", "shares")),
    ):
        errors += _choice(f"mixture.{key}", getattr(settings, key), choices)
    errors += _numbers(settings)
    errors += _domain_errors(settings, domains)
    if settings.weights and settings.start_from:
        errors.append("mixture: found both weights and start_from, expected one of them")
    elif settings.weights:
        errors += weight_errors("mixture.weights", settings.weights, domains)
    if settings.policy in NEEDS_REFERENCES and not settings.references:
        errors.append(
            f"mixture.references: policy {settings.policy} needs the loss to reach in each domain; "
            "give a file made by `llmshearing reference-loss`"
        )
    if not errors:
        errors += _bound_errors(settings, domains)
    return errors


def weight_errors(key: str, weights: dict[str, float], domains: Sequence[str]) -> list[str]:
    """What is wrong with given weights."""
    errors = name_errors(key, weights, domains)
    values = list(weights.values())
    if any(not math.isfinite(value) or value < 0 for value in values):
        errors.append(f"{key}: found {weights}, expected finite numbers, 0 or more")
    elif abs(sum(values) - 1) > TOLERANCE:
        errors.append(f"{key}: they sum to {sum(values):g}, expected 1; scale them")
    return errors


def name_errors(key: str, given: dict[str, float], domains: Sequence[str]) -> list[str]:
    """Domains that are missing or unknown."""
    errors = _unknown(key, given, domains)
    missing = [name for name in domains if name not in given]
    if missing:
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


def domain_settings(settings: MixtureSettings, name: str) -> DomainSettings:
    """What differs for a domain, in a section without problems."""
    return DomainSettings(**(settings.domains.get(name) or {}))


def supply(settings: MixtureSettings, name: str, rows: int, block: int) -> DomainSource:
    """A domain's rows with what happens once they are used up."""
    own = domain_settings(settings, name)
    used_up = own.used_up or settings.used_up
    most = settings.max_passes if own.max_passes is None else own.max_passes
    passes = most or (None if used_up == "repeat" else 1)
    return DomainSource(name, rows, block, passes, "drop" if used_up == "drop" else "stop")


def interval(settings: MixtureSettings) -> int:
    """Steps between updates."""
    return batches(settings.update_interval)


def batches(text: str) -> int:
    """Optimizer steps of a time such as `300ba`.

    Raises:
        ValueError: another form.
    """
    found = _batches(text)
    if found is None:
        raise ValueError(text)
    return found


def _each(settings: MixtureSettings, domains: Sequence[str], key: str) -> np.ndarray:
    common = getattr(settings, key)
    own = [getattr(domain_settings(settings, name), key) for name in domains]
    return np.array([common if value is None else value for value in own], np.float64)


def _batches(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)ba", text)
    return int(match.group(1)) if match else None


def _choice(key: str, value: str, choices: Sequence[str]) -> list[str]:
    if value in choices:
        return []
    return [f"{key}: found {value!r}, expected one of {', '.join(choices)}"]


def _numbers(settings: MixtureSettings) -> list[str]:
    errors = []
    for key, low, high in (
        ("eta", 0, math.inf),
        ("floor", 0, 1),
        ("ceiling", 0, 1),
        ("prior_share", 0, 1),
        ("radius", 0, math.inf),
        ("first_update", 1, math.inf),
        ("max_passes", 0, math.inf),
        ("prefetch", 0, math.inf),
        ("window", 1, math.inf),
        ("patience", 1, math.inf),
    ):
        errors += _range(f"mixture.{key}", getattr(settings, key), low, high)
    if not _batches(settings.update_interval):
        errors.append(
            f"mixture.update_interval: found {settings.update_interval!r}, "
            "expected steps with a unit, e.g. 50ba"
        )
    return errors


def _range(key: str, value: float | None, low: float, high: float) -> list[str]:
    if value is None or (low <= value <= high and value < math.inf):
        return []
    bound = f"from {low} to {high}" if high < math.inf else f"{low} or more and finite"
    return [f"{key}: found {value}, expected {bound}"]


def _domain_errors(settings: MixtureSettings, domains: Sequence[str]) -> list[str]:
    errors = _unknown("mixture.domains", settings.domains, domains)
    known = {entry.name for entry in fields(DomainSettings)}
    for name, given in settings.domains.items():
        key = f"mixture.domains.{name}"
        if given is not None and not isinstance(given, dict):
            errors.append(f"{key}: found {given!r}, expected keys such as ceiling")
            continue
        for wrong in set(given or {}) - known:
            errors.append(f"{key}.{wrong}: unknown key; known: {', '.join(sorted(known))}")
        for entry in known & set(given or {}):
            errors += _type_errors(f"{key}.{entry}", entry, (given or {})[entry])
        if any(error.startswith(f"{key}.") for error in errors):
            continue
        own = domain_settings(settings, name)
        errors += _range(f"{key}.eta", own.eta, 0, math.inf)
        errors += _range(f"{key}.floor", own.floor, 0, 1)
        errors += _range(f"{key}.ceiling", own.ceiling, 0, 1)
        errors += _range(f"{key}.max_passes", own.max_passes, 0, math.inf)
        if own.used_up is not None:
            errors += _choice(f"{key}.used_up", own.used_up, USED_UP)
    return errors


def _bound_errors(settings: MixtureSettings, domains: Sequence[str]) -> list[str]:
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


def _type_errors(key: str, name: str, value: Any) -> list[str]:
    expected: dict[str, tuple[type, ...]] = {"used_up": (str,), "max_passes": (int,)}
    types = expected.get(name, (int, float))
    if value is None or (isinstance(value, types) and not isinstance(value, bool)):
        return []
    return [f"{key}: found {value!r}, expected {'a word' if types == (str,) else 'a number'}"]


def _unknown(key: str, given: dict, domains: Sequence[str]) -> list[str]:
    errors = []
    for name in given:
        if name not in domains:
            near = get_close_matches(name, domains, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the data has {', '.join(domains)}"
            errors.append(f"{key}: unknown domain {name}; {hint}")
    return errors


def starting_weights(
    settings: MixtureSettings, domains: Sequence[str], rows: Sequence[int]
) -> np.ndarray:
    """Weights at the start, in the domains' order and within their bounds.

    Raises:
        UserError: the mixture file cannot be read or does not fit.
    """
    if settings.start_from:
        from llmshearing.mixture.mixture_file import read_mixture

        given = read_mixture(settings.start_from, settings.start_with)
        errors = weight_errors(settings.start_from, given, domains)
        if errors:
            raise UserError("; ".join(errors))
    else:
        given = settings.weights
    if given:
        weights = np.array([given[name] for name in domains], np.float64)
    else:
        weights = np.asarray(rows, np.float64) / sum(rows)
    floor, ceiling = _each(settings, domains, "floor"), _each(settings, domains, "ceiling")
    if ((weights >= floor) & (weights <= ceiling)).all():
        return weights
    return bounded(weights, floor, ceiling)
