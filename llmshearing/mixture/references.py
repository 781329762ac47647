"""Reference losses: the loss to reach in each domain, from a file that says what it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmshearing.errors import UserError
from llmshearing.files import write_text
from llmshearing.mixture.mixture_file import read_yaml


@dataclass(frozen=True)
class References:
    """Losses in nats per token by domain, and what they were measured on.

    Attributes:
        losses: by domain.
        source: `measured` or `fit`, and of what.
        tokenizer: fingerprint of the tokenizer, or None where it is not known.
        sequence_length: tokens in a row, or None.
        fingerprints: of the held-out rows by domain; empty where they are not known.
    """

    losses: dict[str, float]
    source: str = ""
    tokenizer: str | None = None
    sequence_length: int | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file; what is not known is left out."""
        known = {
            "losses": self.losses,
            "source": self.source,
            "tokenizer": self.tokenizer,
            "sequence_length": self.sequence_length,
            "fingerprints": self.fingerprints,
        }
        return {key: value for key, value in known.items() if value}

    def write(self, path: str | Path) -> None:
        """Write the file."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The file's text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def read(cls, path: str | Path) -> References:
        """Read a file.

        Raises:
            UserError: no such file, no `losses` in it, or a loss that is negative or no number.
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

    def errors(
        self,
        path: str | Path,
        domains: Sequence[str],
        tokenizer: str,
        sequence_length: int,
        fingerprints: Mapping[str, str],
    ) -> list[str]:
        """What keeps these losses from being compared with a run's.

        Args:
            path: where they come from, for the messages.
            domains: the run's.
            tokenizer: fingerprint of the run's.
            sequence_length: of the run's rows.
            fingerprints: of the run's held-out rows by domain.
        """
        errors = []
        missing = [name for name in domains if name not in self.losses]
        if missing:
            errors.append(
                f"{path}: no reference loss for {', '.join(missing)}; "
                f"it has {', '.join(self.losses)}"
            )
        unknown = [name for name in self.losses if name not in domains]
        if unknown:
            errors.append(
                f"{path}: reference losses for {', '.join(unknown)}, which the data does not have; "
                f"it has {', '.join(domains)}"
            )
        if self.tokenizer and self.tokenizer != tokenizer:
            errors.append(
                f"{path}: losses of another tokenizer ({self.tokenizer[:12]}, the data has "
                f"{tokenizer[:12]}); measure them again with this one"
            )
        if self.sequence_length and self.sequence_length != sequence_length:
            errors.append(
                f"{path}: losses on rows of {self.sequence_length} tokens, the data has rows of "
                f"{sequence_length}; measure them again"
            )
        for name in domains:
            known = self.fingerprints.get(name)
            if known and name in fingerprints and known != fingerprints[name]:
                errors.append(
                    f"{path}: the loss of {name} was measured on other held-out rows; measure again"
                )
        return errors

    @property
    def tells_its_data(self) -> bool:
        """Whether it is known which tokenizer and rows the losses belong to."""
        return bool(self.tokenizer and self.fingerprints)


def _loss(path: str | Path, name: Any, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{path}: found loss {value!r} of {name}, expected a number, 0 or more")
    return number
