"""Reference losses: the loss to reach in each domain, from a file that says what it belongs to."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmshearing.errors import UserError
from llmshearing.files import write_text
from llmshearing.yaml_files import read_yaml

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The data of a run, which mixtures and references have to fit.

    Attributes:
        domains: names, in the run's order.
        rows: to train on, of each domain.
        tokenizer: its fingerprint.
        sequence_length: tokens in a row.
        fingerprints: of the held-out rows by domain.
    """

    domains: Sequence[str]
    rows: Sequence[int]
    tokenizer: str
    sequence_length: int
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class References:
    """Losses in nats per token by domain, and what they were measured on.

    Attributes:
        losses: by domain.
        source: `measured` or `fit`, and of what.
        tokenizer: fingerprint of the tokenizer; None if it is not known.
        sequence_length: tokens in a row; None if it is not known.
        fingerprints: of the held-out rows by domain; empty if they are not known.
    """

    losses: dict[str, float]
    source: str = ""
    tokenizer: str | None = None
    sequence_length: int | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the file."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The file's text, without what is not known."""
        known = {key: value for key, value in asdict(self).items() if value}
        return yaml.safe_dump(known, sort_keys=False)

    @classmethod
    def read(cls, path: str | Path) -> References:
        """Read a file.

        Raises:
            UserError: no such file, no `losses` in it, or a loss that is negative or not a number.
        """
        content = read_yaml(path, "reference file")
        losses = content.get("losses")
        if not isinstance(losses, dict) or not losses:
            raise UserError(
                f"found no `losses` in {path}, expected a loss for each domain under it"
            )
        numbers = {str(name): _loss(path, name, value) for name, value in losses.items()}
        return cls(
            losses=numbers,
            source=str(content.get("source", "")),
            tokenizer=content.get("tokenizer"),
            sequence_length=content.get("sequence_length"),
            fingerprints=dict(content.get("fingerprints") or {}),
        )

    @classmethod
    def for_run(cls, path: str | Path, data: RunData) -> References:
        """Read a file for a run.

        Raises:
            UserError: it cannot be read, or does not belong to the run's data.
        """
        found = cls.read(path)
        errors = found.errors(path, data)
        if errors:
            raise UserError("; ".join(errors))
        return found

    def errors(self, path: str | Path, data: RunData) -> list[str]:
        """Why these losses cannot be compared with a run's.

        Args:
            path: where they come from, for the messages.
            data: of the run.
        """
        errors = []
        missing = [name for name in data.domains if name not in self.losses]
        if missing:
            errors.append(
                f"{path}: no reference loss for {', '.join(missing)}; "
                f"it has {', '.join(self.losses)}"
            )
        unknown = [name for name in self.losses if name not in data.domains]
        if unknown:
            errors.append(
                f"{path}: reference losses for {', '.join(unknown)}, which the data does not have; "
                f"it has {', '.join(data.domains)}"
            )
        if self.tokenizer and self.tokenizer != data.tokenizer:
            errors.append(
                f"{path}: losses of another tokenizer ({self.tokenizer[:12]}, the data has "
                f"{data.tokenizer[:12]}); measure them again with this one"
            )
        if self.sequence_length and self.sequence_length != data.sequence_length:
            errors.append(
                f"{path}: losses on rows of {self.sequence_length} tokens, the data has rows of "
                f"{data.sequence_length}; measure them again"
            )
        errors += [
            f"{path}: the loss of {name} was measured on other held-out rows; measure it again"
            for name in data.domains
            if name in self.fingerprints.keys() & data.fingerprints.keys()
            and self.fingerprints[name] != data.fingerprints[name]
        ]
        return errors


def read_references(path: str | Path | None, data: RunData) -> np.ndarray | None:
    """The losses to reach [k], in the domains' order; None if there is no file.

    Raises:
        UserError: the file cannot be read, or does not belong to this data.
    """
    if not path:
        return None
    found = References.for_run(path, data)
    if not (found.tokenizer and found.fingerprints):
        log.warning(
            "%s does not say which tokenizer and rows its losses belong to, so nothing checks that "
            "they fit this data",
            path,
        )
    return np.array([found.losses[name] for name in data.domains])


def _loss(path: str | Path, name: Any, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{path}: found loss {value!r} of {name}, expected a number, 0 or more")
    return number
