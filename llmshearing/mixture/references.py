"""Reference losses: the loss to reach in each domain, from a file that says what it belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ConfigDict, Field

from llmshearing.errors import UserError
from llmshearing.files import write_text
from llmshearing.mixture.settings import name_errors
from llmshearing.quantities import NotNegative
from llmshearing.typed_yaml import Section, load


@dataclass(frozen=True)
class RunData:
    """The data of a run, which references have to fit."""

    domains: Sequence[str]  # in the run's order
    rows: Sequence[int]  # to train on, of each domain
    tokenizer: str  # its fingerprint
    sequence_length: int  # tokens in a row
    fingerprints: dict[str, str]  # of the held-out rows by domain


class References(Section):
    """Losses in nats per token by domain, and what they were measured on, as far as it is known."""

    model_config = ConfigDict(extra="ignore")

    losses: dict[str, NotNegative] = Field(min_length=1)
    """Nats per token, by domain."""
    source: str = ""
    """`measured` or `fit`, and of what."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer."""
    sequence_length: int | None = None
    """Tokens in a row."""
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Of the held-out rows, by domain."""

    def write(self, path: str | Path) -> None:
        """Write the file."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The file's text, without what is not known."""
        return yaml.safe_dump(self.model_dump(exclude_defaults=True), sort_keys=False)

    @classmethod
    def read(cls, path: str | Path) -> "References":
        """Read a file; a UserError lists every missing or wrong value in it."""
        return load(cls, path, what="reference file")

    @classmethod
    def for_run(cls, path: str | Path, data: RunData) -> "References":
        """Read a file for a run; a UserError if it does not belong to the run's data."""
        found = cls.read(path)
        if errors := found.errors(path, data):
            raise UserError("; ".join(errors))
        return found

    def errors(self, path: str | Path, data: RunData) -> list[str]:
        """Why these losses, read from `path`, cannot be compared with a run's."""
        errors = name_errors(str(path), self.losses, data.domains)
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
