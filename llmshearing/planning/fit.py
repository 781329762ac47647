"""Finds a change with which a run fits: tries the cheapest first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmshearing.planning.memory import Job, plan_memory

MOST_RANKS = 1024


@dataclass(frozen=True)
class Option:
    """A change that was tried."""

    changes: tuple[str, ...]  # overrides of the recipe, `key=value`; a number of GPUs as `--gpus N`
    peak: int  # bytes with it


def first_that_fits(job: Job, memory: int) -> tuple[Option | None, list[Option]]:
    """Try changes of a job that does not fit until its peak is within `memory` bytes.

    Returns:
        The first change that fits, None if there is none, and all that were tried, in order.
    """
    tried: list[Option] = []
    for changed in _candidates(job):
        option = Option(tuple(_changes(job, changed)), plan_memory(changed).peak.total)
        tried.append(option)
        if option.peak <= memory:
            return option, tried
    return None, tried


def _candidates(job: Job) -> Iterator[Job]:
    """Smaller batches cost little, recomputation a third more time, then come more GPUs."""
    widths = [job]
    if not job.sharded and job.ranks > 1:
        widths.append(replace(job, parallelism="fsdp2", shards=job.ranks))
    ranks = max(2, 2 * job.ranks)
    total = job.rank_batch * job.ranks
    while ranks <= MOST_RANKS and total % ranks == 0:
        wide = replace(job, parallelism="fsdp2", ranks=ranks, rank_batch=total // ranks)
        widths.append(replace(wide, shards=max(ranks, job.shards)))
        ranks *= 2
    for width in widths:
        for checkpointing in sorted({job.checkpointing, True}):
            most = min(job.microbatch, width.rank_batch)
            for rows in (rows for rows in range(most, 0, -1) if most % rows == 0):
                option = replace(
                    width,
                    checkpointing=checkpointing,
                    microbatch=rows,
                    eval_batch=min(job.eval_batch, rows),
                )
                if option != job:
                    yield option


def _changes(job: Job, changed: Job) -> Iterator[str]:
    if changed.ranks != job.ranks:
        yield f"--gpus {changed.ranks}"
    if changed.parallelism != job.parallelism:
        yield f"parallelism={changed.parallelism}"
    if changed.checkpointing != job.checkpointing:
        yield "model.activation_checkpointing=true"
    if changed.microbatch != job.microbatch:
        yield f"data.microbatch={changed.microbatch}"
    if changed.eval_batch != job.eval_batch:
        yield f"data.eval_batch={changed.eval_batch}"
