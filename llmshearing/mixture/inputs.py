"""The files that a `mixture` section names, read and checked against the data of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmshearing.errors import UserError
from llmshearing.mixture.references import References
from llmshearing.mixture.settings import MixtureSettings, starting_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFacts:
    """What mixtures and references have to fit.

    Attributes:
        domains: names, in the run's order.
        rows: of each, to train on.
        tokenizer: its fingerprint.
        sequence_length: tokens in a row.
        fingerprints: of the held-out rows by domain.
    """

    domains: Sequence[str]
    rows: Sequence[int]
    tokenizer: str
    sequence_length: int
    fingerprints: dict[str, str]


def read_references(settings: MixtureSettings, facts: DataFacts) -> np.ndarray | None:
    """The losses to reach, in the domains' order; None where no file is given.

    Raises:
        UserError: they cannot be read or do not belong to this data.
    """
    found = _references(settings, facts)
    if found is None:
        return None
    if not found.tells_its_data:
        log.warning(
            "%s does not say which tokenizer and rows its losses belong to: "
            "that they fit this data could not be checked",
            settings.references,
        )
    return np.array([found.losses[name] for name in facts.domains])


def _references(settings: MixtureSettings, facts: DataFacts) -> References | None:
    if not settings.references:
        return None
    found = References.read(settings.references)
    errors = found.errors(
        settings.references,
        facts.domains,
        facts.tokenizer,
        facts.sequence_length,
        facts.fingerprints,
    )
    if errors:
        raise UserError("; ".join(errors))
    return found


def file_problems(settings: MixtureSettings, facts: DataFacts, workers: int = 0) -> list[str]:
    """What is wrong with the files, and with the number of workers, one message each."""
    errors = []
    readers: tuple[Callable[[], object], ...] = (
        lambda: starting_weights(settings, facts.domains, facts.rows),
        lambda: _references(settings, facts),
    )
    for read in readers:
        try:
            read()
        except UserError as error:
            errors.append(f"mixture: {error}")
    if workers > settings.prefetch:
        errors.append(
            f"data.workers: found {workers} with mixture.prefetch {settings.prefetch}, expected at "
            "least a batch for each; raise mixture.prefetch or take fewer workers"
        )
    return errors
