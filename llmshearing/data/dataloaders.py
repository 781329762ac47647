"""The loaders that Composer drives: endless training batches, and every held-out row once."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.core.data_spec import default_split_batch
from torch.utils.data import DataLoader, DistributedSampler

from llmshearing.data.dataset import ERROR, IGNORED, Batch, HeldOutRows, TrainRows
from llmshearing.data.domains import DomainRows
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.sampler import Sampler
from llmshearing.processes import exit_with_parent


class GlobalBatches(DistributedSampler):
    """One rank's part of each global batch, without end.

    Composer asks for a `DistributedSampler` on several ranks; nothing of that class is used.

    Args:
        rows: the training rows with the run's sampler.
        global_batch: rows of a batch over all ranks.
        rank: this process.
        world_size: all of them; `global_batch` is a multiple of it.
    """

    def __init__(self, rows: TrainRows, global_batch: int, rank: int, world_size: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank)
        self.sampler, self.global_batch = rows.sampler, global_batch

    def __len__(self) -> int:
        raise TypeError("training batches have no number")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Indices of `TrainRows` [B, 3], until the data is used up."""
        while (batch := self.sampler.take(self.global_batch)) is not None:
            mine = batch.share(self.rank, self.num_replicas)
            yield np.stack([mine.sample, mine.domain, self.sampler.rows(mine)], axis=1)


class HeldOutOrder(DistributedSampler):
    """One rank's part of the held-out rows, filled up so that every rank has as many batches.

    Args:
        rows: the held-out rows.
        batch: rows per batch of one rank at most.
        rank: this process.
        world_size: all of them.
    """

    def __init__(self, rows: HeldOutRows, batch: int, rank: int, world_size: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank)
        self.total_size = len(rows)  # Composer takes away what exceeds the rows: nothing
        self.batches = math.ceil(len(rows) / (batch * world_size))
        self.batch_size = math.ceil(len(rows) / (self.batches * world_size))

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Numbers of rows; -1 for one that only fills up."""
        for batch in range(self.batches):
            first = (batch * self.num_replicas + self.rank) * self.batch_size
            for number in range(first, first + self.batch_size):
                yield number if number < self.total_size else -1


def build_train_loader(
    rows: TrainRows,
    *,
    global_batch: int,
    workers: int = 0,
    prefetch: int = 4,
    rank: int = 0,
    world_size: int = 1,
) -> DataSpec:
    """The training loader, for Composer.

    Args:
        rows: with the run's sampler.
        global_batch: rows of a batch over all ranks.
        workers: processes that read; 0 reads in the main one.
        prefetch: batches that they may read ahead, at least one per worker.
        rank: this process.
        world_size: all of them.

    Raises:
        UserError: the numbers do not fit each other.
    """
    if global_batch % world_size:
        raise UserError(
            f"found a global batch of {global_batch} rows for {world_size} ranks, "
            "expected a multiple of the ranks"
        )
    if workers > prefetch:
        raise UserError(
            f"found {workers} data workers with mixture.prefetch {prefetch}, expected at least a "
            "batch for each: raise mixture.prefetch or take fewer workers"
        )
    loader = DataLoader(
        rows,
        batch_sampler=GlobalBatches(rows, global_batch, rank, world_size),
        num_workers=workers,
        prefetch_factor=prefetch // workers if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=set_up_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(
        loader,
        batch_transforms=_refuse_damaged,
        split_batch=_split,
        get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
        # Composer multiplies and divides by them, which takes any number
        get_num_tokens_in_batch=_num_tokens,  # pyright: ignore[reportArgumentType]
    )


def build_eval_loaders(
    tree: DataTree,
    split: str,
    domains: Sequence[str],
    *,
    batch: int,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    remotes: Mapping[str, str] | None = None,
    by_hash: bool = True,
) -> dict[str, DataLoader]:
    """One loader per domain; over all ranks they give every held-out row once.

    Args:
        tree: the data.
        split: which part of it.
        domains: names, in the run's order, which numbers them.
        batch: rows per batch of one rank at most.
        limit: rows per domain, evenly spread; None for all.
        rank: this process.
        world_size: all of them.
        remotes: where shards are fetched from, by domain.
        by_hash: hash each shard when it is first read.
    """
    held = tree.split(split)
    loaders = {}
    for number, name in enumerate(domains):
        source = DomainRows(name, held[name].path, (remotes or {}).get(name), by_hash=by_hash)
        rows = HeldOutRows(source, number, tree.sequence_length, tree.vocabulary, limit)
        order = HeldOutOrder(rows, batch, rank, world_size)
        loaders[name] = DataLoader(
            rows, batch_size=order.batch_size, sampler=order, collate_fn=_as_it_is
        )
    return loaders


def remote_folders(tree: DataTree, split: str, remote: str | None) -> dict[str, str]:
    """Where the shards of a split's domains are fetched from; nothing where the tree is local."""
    return {name: f"{remote.rstrip('/')}/{split}/{name}" for name in tree.split(split) if remote}


def train_rows(domains: Sequence[DomainRows], tree: DataTree, sampler: Sampler) -> TrainRows:
    """The training rows of a tree's domains in a sampler's order."""
    return TrainRows(domains, tree.sequence_length, tree.vocabulary, sampler)


def set_up_worker(worker: int) -> None:
    """In a worker: end with the trainer, at its SIGTERM or when it is killed, and not before.

    Slurm sends SIGTERM to all processes of a job, and the trainer decides what it means: PyTorch's
    handler would end the worker, and the trainer with it, before a checkpoint is written.
    """
    del worker
    exit_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_at_sigterm_of, args=(os.getppid(),), daemon=True).start()


def _exit_at_sigterm_of(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


# Added to the number of targets, so that a batch without any does not divide by zero.
NONE = 1e-9


def _num_tokens(batch: Batch) -> dict[str, int | float]:
    """All tokens, and the targets, by which microbatches and ranks weigh where rows differ."""
    targets = int((batch["labels"][:, 1:] != IGNORED).sum())
    return {"total": batch["input_ids"].numel(), "loss_generating": targets + NONE}


def _as_it_is(batch: Any) -> Any:
    return batch


def _refuse_damaged(batch: Batch) -> Batch:
    if ERROR in batch:
        raise UserError(batch[ERROR])
    return batch


def _split(batch: Batch, size: int | float) -> Sequence[Batch]:
    """Microbatches; a rank's batch may be smaller than one."""
    return default_split_batch(batch, min(int(size), len(batch["input_ids"])))
