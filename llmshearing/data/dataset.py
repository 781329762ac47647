"""Batches of rows of domains: what workers read, and the state that checkpoints hold."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llmshearing.data.domains import DomainRows
from llmshearing.data.schema import LOSS, TOKENS
from llmshearing.data.teacher_cache import READ_AS
from llmshearing.errors import UserError
from llmshearing.mixture.sampler import Sampler

IGNORED = -100  # label of a token that is not a target
ERROR = "error"

Batch = dict[str, Any]


class TrainRows(Dataset):
    """The training rows of all domains. An index is (sample number, domain, row).

    The run's sampler is used in the main process only; checkpoints hold its state. `cached` holds
    a teacher's distributions for the same rows; empty for none.
    """

    def __init__(
        self,
        domains: Sequence[DomainRows],
        sequence_length: int,
        vocabulary: int,
        sampler: Sampler,
        cached: Sequence[DomainRows] = (),
    ) -> None:
        self.domains, self.cached = list(domains), list(cached)
        self.sequence_length, self.vocabulary, self.sampler = sequence_length, vocabulary, sampler
        self.epoch_begun = 0  # first sample of the epoch; later than 0 once data was used up

    def __len__(self) -> int:
        return sum(map(len, self.domains))

    def __getitems__(self, indices: np.ndarray) -> Batch:
        """Read a batch [B, 3]; an error in the data is returned under `error`."""
        rows = [(int(domain), int(row)) for _, domain, row in indices]
        try:
            ids, labels = read_rows(self.domains, rows, self.sequence_length, self.vocabulary)
            teacher = read_cached(self.cached, rows) if self.cached else {}
        except UserError as error:  # not raised: from a worker it would arrive as a traceback
            return {ERROR: str(error)}
        return {
            "input_ids": ids,
            "labels": labels,
            "domain": torch.from_numpy(indices[:, 1].copy()),
            "sample_id": torch.from_numpy(indices[:, 0].copy()),
            **teacher,
        }

    def state_dict(self, num_samples: int, from_beginning: bool = True) -> dict[str, Any]:
        """The state for a checkpoint after `num_samples` of the epoch, as Composer asks for it.

        They are 0 right after the data was used up, which ends an epoch.
        """
        assert from_beginning
        if num_samples == 0 and self.sampler.used_up:
            state = self.sampler.state_dict()
            return state | {"epoch_begun": state["sample"]}
        state = self.sampler.state_dict(self.epoch_begun + num_samples)
        return state | {"epoch_begun": self.epoch_begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint, without reading the rows used before."""
        self.sampler.load_state_dict(state)
        self.epoch_begun = state["epoch_begun"]


class HeldOutRows(Dataset):
    """Held-out rows of the domain with the number `domain`. An index is a row, or -1 for padding.

    Up to `limit` rows are used, evenly spread; None uses all.
    """

    def __init__(
        self,
        rows: DomainRows,
        domain: int,
        sequence_length: int,
        vocabulary: int,
        limit: int | None = None,
    ) -> None:
        self.rows, self.domain = rows, domain
        self.sequence_length, self.vocabulary = sequence_length, vocabulary
        self.used = len(rows) if limit is None else min(limit, len(rows))
        if self.used == 0:
            raise UserError(
                f"found no held-out row to use in {rows.local}, expected at least one: prepare "
                f"more of domain {rows.name}, or evaluate on more rows"
            )

    def __len__(self) -> int:
        return self.used

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Read a batch; padding has no targets."""
        rows = [(0, max(index, 0) * len(self.rows) // self.used) for index in indices]
        ids, labels = read_rows([self.rows], rows, self.sequence_length, self.vocabulary)
        labels[torch.tensor(indices) < 0] = IGNORED
        return {
            "input_ids": ids,
            "labels": labels,
            "domain": torch.full((len(rows),), self.domain),
            "sample_id": torch.tensor(indices),
        }


def sample_rows(domains: Sequence[DomainRows], rows: int) -> list[tuple[int, int]]:
    """The first rows of each domain, in proportion to the domains' numbers of rows.

    In all about `rows`, with at least one of each domain; all there are if they are fewer.

    Returns:
        (domain, row) of each, as `read_rows` takes them.
    """
    part = min(1.0, rows / max(1, sum(map(len, domains))))
    shares = [min(len(rows), max(1, round(len(rows) * part))) for rows in domains]
    return [(domain, row) for domain, share in enumerate(shares) for row in range(share)]


def batched(rows: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Consecutive parts of at most `size` rows."""
    return (rows[first : first + size] for first in range(0, len(rows), size))


def read_rows(
    domains: Sequence[DomainRows],
    rows: Sequence[tuple[int, int]],
    sequence_length: int,
    vocabulary: int,
) -> tuple[Tensor, Tensor]:
    """Read rows (domain, row) [B], each of T = `sequence_length` ids below `vocabulary`.

    Returns:
        Token ids [B, T] and labels [B, T], int64; -100 for tokens that are not targets.

    Raises:
        UserError: a shard is missing or damaged.
    """
    ids = np.empty((len(rows), sequence_length), np.int64)
    targets = np.ones((len(rows), sequence_length), bool)
    for i, (domain, row) in enumerate(rows):
        sample = domains[domain][row]
        tokens = sample[TOKENS]
        if tokens.shape != (sequence_length,):
            raise _misfit(domains[domain], row, f"{tokens.size} ids, expected {sequence_length}")
        ids[i] = tokens
        if LOSS in (sample.dtype.names or ()):
            targets[i] = sample[LOSS]
    if ids.max(initial=0) >= vocabulary:
        domain, row = rows[int(ids.max(1).argmax())]
        raise _misfit(domains[domain], row, f"id {ids.max()}, expected ids below {vocabulary}")
    return torch.from_numpy(ids), torch.from_numpy(np.where(targets, ids, IGNORED))


def read_cached(domains: Sequence[DomainRows], rows: Sequence[tuple[int, int]]) -> Batch:
    """Read a teacher's distributions for rows (domain, row) [B], see `teacher_cache`.

    Returns:
        Its columns by name, [B, T, K] or [B, T].

    Raises:
        UserError: a shard is missing or damaged.
    """
    found = [domains[domain][row] for domain, row in rows]
    return {
        name: torch.from_numpy(np.stack([row[name] for row in found]).astype(kind))
        for name, kind in READ_AS.items()
    }


def _misfit(domain: DomainRows, row: int, what: str) -> UserError:
    return UserError(
        f"found row {row} of domain {domain.name} in {domain.local} with {what}: its shard is "
        "damaged; copy or prepare it again"
    )
