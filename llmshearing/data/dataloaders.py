"""The loaders for Composer: endless training batches, and every held-out row once."""

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.core.data_spec import default_split_batch
from torch.utils.data import DataLoader, DistributedSampler

from llmshearing.data.dataset import ERROR, IGNORED, Batch, HeldOutRows, TrainRows
from llmshearing.data.domains import open_domains
from llmshearing.data.settings import DataSettings
from llmshearing.data.teacher_cache import TeacherCache
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.sampler import Sampler
from llmshearing.mixture.settings import MixtureSettings, domain_source
from llmshearing.processes import exit_with_parent

log = logging.getLogger(__name__)


class GlobalBatches(DistributedSampler):
    """One rank's part of each global batch, without end.

    Composer requires a `DistributedSampler` on several ranks; this uses nothing of that class.
    """

    def __init__(self, rows: TrainRows, global_batch: int, rank: int, world_size: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank)
        self.sampler, self.global_batch = rows.sampler, global_batch

    def __len__(self) -> int:
        raise TypeError("there is no number of training batches")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Indices of `TrainRows` [B, 3], until the data is used up."""
        while (batch := self.sampler.take(self.global_batch)) is not None:
            mine = batch.share(self.rank, self.num_replicas)
            yield np.stack([mine.sample, mine.domain, self.sampler.rows(mine)], axis=1)


class HeldOutOrder(DistributedSampler):
    """One rank's part of the held-out rows, padded so that all ranks have as many batches.

    A batch of one rank has at most `batch` rows.
    """

    def __init__(self, rows: HeldOutRows, batch: int, rank: int, world_size: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank)
        self.total_size = len(rows)  # so that Composer does not cut off the padding itself
        self.batches = math.ceil(len(rows) / (batch * world_size))
        self.batch_size = math.ceil(len(rows) / (self.batches * world_size))

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Numbers of rows; -1 for padding."""
        for batch in range(self.batches):
            first = (batch * self.num_replicas + self.rank) * self.batch_size
            for number in range(first, first + self.batch_size):
                yield number if number < self.total_size else -1


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run."""

    sampler: Sampler  # decides the order of the training rows; checkpoints hold its state
    rows: TrainRows  # of all domains
    start: np.ndarray  # domain weights at the start [k]
    train: DataSpec  # for Composer's trainer
    held_out: dict[str, DataLoader]  # for Composer's evaluators, by domain


def build_loaders(
    data: DataSettings,
    mixture: MixtureSettings,
    tree: DataTree,
    start: np.ndarray,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    cache: TeacherCache | None = None,
) -> Loaders:
    """Build the loaders of one rank of a run with the starting weights `start` [k].

    With a cache of a teacher, training batches have its columns.
    """
    by_hash = data.verify == "hash"
    domains = open_domains(tree, data.split, remote=data.remote, by_hash=by_hash)
    names = [rows.name for rows in domains]
    cached = [] if cache is None else cache.open_domains(names, by_hash=by_hash)
    sampler = Sampler(
        [domain_source(mixture, rows.name, len(rows), rows.block) for rows in domains],
        MixturePlan.start(start),
        seed,
        window=mixture.window,
        memory=mixture.prefetch + 2,
    )
    rows = TrainRows(domains, tree.sequence_length, tree.vocabulary, sampler, cached)
    train = build_train_loader(
        rows,
        global_batch=data.global_batch,
        workers=data.workers,
        prefetch=mixture.prefetch,
        rank=rank,
        world_size=world_size,
    )
    held_out = build_held_out_loaders(data, tree, names, rank, world_size)
    return Loaders(sampler, rows, start, train, held_out)


def build_train_loader(
    rows: TrainRows,
    *,
    global_batch: int,
    workers: int = 0,
    prefetch: int = 4,
    rank: int = 0,
    world_size: int = 1,
) -> DataSpec:
    """Build the training loader of one rank.

    A batch has `global_batch` rows over all ranks. Up to `prefetch` batches are read ahead, by at
    most as many worker processes; with 0 workers the main process reads.
    """
    assert global_batch % world_size == 0
    assert workers <= prefetch
    loader = DataLoader(
        rows,
        batch_sampler=GlobalBatches(rows, global_batch, rank, world_size),
        num_workers=workers,
        prefetch_factor=prefetch // workers if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=set_up_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(
        loader,
        batch_transforms=_refuse_damaged,
        split_batch=_split,
        get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
        # Composer only multiplies and divides by these, so they need not be integers
        get_num_tokens_in_batch=_num_tokens,  # pyright: ignore[reportArgumentType]
    )


def build_held_out_loaders(
    data: DataSettings, tree: DataTree, domains: Sequence[str], rank: int = 0, world_size: int = 1
) -> dict[str, DataLoader]:
    """Build one loader per domain; over all ranks they give every held-out row once.

    The order of the names in `domains` is the domains' numbering in the run.
    """
    if others := [name for name in tree.split(data.eval_split) if name not in domains]:
        log.info(
            "held out but not trained on, so not evaluated during the run: %s; to measure them, "
            "use llmshearing evaluate",
            ", ".join(others),
        )
    loaders = {}
    by_hash = data.verify == "hash"
    opened = open_domains(tree, data.eval_split, domains, remote=data.remote, by_hash=by_hash)
    for number, domain in enumerate(opened):
        rows = HeldOutRows(domain, number, tree.sequence_length, tree.vocabulary, data.eval_rows)
        order = HeldOutOrder(rows, data.eval_batch, rank, world_size)
        loaders[domain.name] = DataLoader(
            rows, batch_size=order.batch_size, sampler=order, collate_fn=_unchanged
        )
    return loaders


def set_up_worker(worker: int) -> None:
    """In a worker process: end with the trainer or at its SIGTERM, and at no other SIGTERM.

    Slurm sends SIGTERM to all processes of a job. PyTorch's handler would end the worker, and with
    it the trainer before it has written a checkpoint.
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
    """All tokens, and the targets, which weigh microbatches and ranks if rows differ in them."""
    targets = int((batch["labels"][:, 1:] != IGNORED).sum())
    return {"total": batch["input_ids"].numel(), "loss_generating": targets + NONE}


def _unchanged(batch: Any) -> Any:
    return batch


def _refuse_damaged(batch: Batch) -> Batch:
    if ERROR in batch:
        raise UserError(batch[ERROR])
    return batch


def _split(batch: Batch, size: int | float) -> Sequence[Batch]:
    """Split into microbatches; the batch of a rank may be smaller than one."""
    return default_split_batch(batch, min(int(size), len(batch["input_ids"])))
