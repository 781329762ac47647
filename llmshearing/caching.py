"""The command `llmshearing teacher-cache`: a teacher's distributions for a run's rows, on disk.

The work is cut into shards, which do not depend on the number of processes. A shard gets its name
when it is complete, so after a kill only shards that were being made are made again.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llmshearing.building import empty_teacher
from llmshearing.config import Recipe
from llmshearing.data.dataset import batched, read_rows
from llmshearing.data.domains import DomainRows, open_domains
from llmshearing.data.schema import INDEX, MANIFEST, fingerprint
from llmshearing.data.teacher_cache import (
    ENTROPY,
    FORMAT,
    IDENTITY,
    IDS,
    METHODS,
    PROBABILITIES,
    cache_columns,
)
from llmshearing.errors import UserError
from llmshearing.evaluation.ranks import own_device, rank_and_count
from llmshearing.files import LOCK, write_json, write_text, writing
from llmshearing.huggingface.source import Source, fill
from llmshearing.ledger import Ledger, check_same, owned
from llmshearing.models.settings import DistillationSettings
from llmshearing.models.sparse_teacher import most_probable, sample
from llmshearing.models.teacher import FrozenTeacher
from llmshearing.preflight import Inputs, resolve
from llmshearing.preparation.mds_files import ShardFormat, index_text, read_entry, shard_name
from llmshearing.run_manifest import teacher_record

log = logging.getLogger(__name__)

CHUNK = 128  # positions whose probabilities exist at the same time


@dataclass(frozen=True)
class CacheSettings:
    """What decides a cache, besides the recipe."""

    method: Literal["sampled", "top"] = "sampled"  # a sample, or the most probable ids
    places: int = 32  # ids of each position
    seed: int = 17  # of the sample
    # size of a shard, about; it is the piece of work that a kill can cost
    shard_bytes: int = 64 << 20


def make_cache(
    recipe_file: str | Path,
    overrides: Sequence[str],
    out: Path,
    settings: CacheSettings | None = None,
    batch_size: int = 8,
) -> None:
    """Store the teacher's distributions for every training row of a recipe.

    Several processes that a launcher started share the shards.

    Args:
        recipe_file: a run with a teacher.
        overrides: `key=value` for it.
        out: directory of the cache; the same work resumes there.
        settings: what to store.
        batch_size: rows of a forward pass; it changes probabilities by rounding only.

    Raises:
        UserError: an error of the recipe, no teacher, more places than token ids, or `out` holds
            something else.
    """
    settings = settings or CacheSettings()
    recipe, inputs = resolve(recipe_file, overrides)
    distillation, teacher = recipe.distillation, inputs.teacher
    if distillation is None or teacher is None:
        raise UserError(
            f"{recipe_file}: found no teacher, expected a section `distillation` without a cache; "
            "add distillation={} for the default teacher, or distillation.teacher=DIR"
        )
    vocabulary = min(teacher.table.source.vocabulary, inputs.source.table.source.vocabulary)
    if settings.places > vocabulary:
        raise UserError(f"--tokens: found {settings.places}, expected at most {vocabulary} ids")
    rank, ranks = rank_and_count()
    if rank == 0:
        _refuse_other_content(out)
    with owned(out, rank):
        job = _Job(recipe, inputs, distillation, teacher, settings, vocabulary, batch_size, out)
        check_same(out / IDENTITY, "teacher cache", job.identity, rank)
        if rank == 0:
            log.info(job.announcement)
        model, weights = empty_teacher(recipe, distillation, teacher)
        fill(model, weights)
        frozen = FrozenTeacher(model.to(own_device()))  # pyright: ignore[reportArgumentType]
        ledger = Ledger(out, rank, ranks, "shards")
        entries = ledger.results("teacher cache", job.shards, functools.partial(job.write, frozen))
        if rank == 0:
            job.finish(entries)


def _refuse_other_content(out: Path) -> None:
    """Raise a UserError if a directory holds anything but a cache, such as a data tree."""
    if out.is_dir() and not (out / IDENTITY).exists() and {p.name for p in out.iterdir()} - {LOCK}:
        raise UserError(f"found other files in {out}, expected a new directory: give another --out")


@dataclass(frozen=True)
class _Job:
    """A cache to make."""

    recipe: Recipe
    inputs: Inputs
    distillation: DistillationSettings
    teacher: Source
    settings: CacheSettings
    vocabulary: int
    batch_size: int
    out: Path

    @functools.cached_property
    def domains(self) -> dict[str, DomainRows]:
        data = self.recipe.data
        by_hash = data.verify == "hash"
        opened = open_domains(self.inputs.tree, data.split, remote=data.remote, by_hash=by_hash)
        return {rows.name: rows for rows in opened}

    @functools.cached_property
    def layout(self) -> ShardFormat:
        length, places = self.inputs.tree.sequence_length, self.settings.places
        return ShardFormat(
            cache_columns(length, places, self.vocabulary), self.settings.shard_bytes
        )

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What has to be equal to resume, and all that a finished cache says of its making."""
        data, narrow = (
            self.recipe.data,
            self.distillation.narrow_teacher(self.recipe.model.precision),
        )
        return {
            "teacher": dataclasses.asdict(teacher_record(self.teacher)),
            "precision": "bf16" if narrow else "fp32",
            "split": data.split,
            "data": {n: i.fingerprint for n, i in self.inputs.tree.split(data.split).items()},
            "sequence_length": self.inputs.tree.sequence_length,
            "temperature": self.distillation.temperature,
            "vocabulary": self.vocabulary,
            **dataclasses.asdict(self.settings),
        }

    @property
    def announcement(self) -> str:
        """What the cache will hold and take."""
        length = self.inputs.tree.sequence_length
        each = self.layout.row.itemsize / length
        tokens = length * sum(map(len, self.domains.values()))
        return (
            f"{self.settings.places} of {self.vocabulary:,} token ids for each position, "
            f"{METHODS[self.settings.method]}\n{each:g} bytes per token, "
            f"{each * tokens / 1e9:,.3f} GB for {tokens:,} tokens"
        )

    @property
    def shards(self) -> list[str]:
        """`DOMAIN/NUMBER` of all."""
        per = self.layout.rows_per_shard
        return [
            f"{name}/{number}"
            for name, rows in self.domains.items()
            for number in range(-(-len(rows) // per))
        ]

    def write(self, teacher: FrozenTeacher, shard: str) -> dict[str, Any]:
        """Write a shard, and return its entry in the index."""
        name, _, number = shard.rpartition("/")
        per = self.layout.rows_per_shard
        first = int(number) * per
        wanted = range(first, min(first + per, len(self.domains[name])))
        rows = np.empty(len(wanted), self.layout.row)
        for some in batched([(0, row) for row in wanted], self.batch_size):
            part = slice(some[0][1] - first, some[-1][1] + 1 - first)
            self._fill(rows[part], teacher, name, some)
        path = self.out / self.recipe.data.split / name / shard_name(int(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(self.layout.header(len(rows)))
            file.write(rows.tobytes())
        return read_entry(path, int(number))

    @torch.inference_mode()
    def _fill(
        self,
        rows: np.ndarray,
        teacher: FrozenTeacher,
        name: str,
        wanted: Sequence[tuple[int, int]],
    ) -> None:
        """The distributions of some rows of a domain."""
        tree, device = self.inputs.tree, own_device()
        tokens, _ = read_rows([self.domains[name]], wanted, tree.sequence_length, tree.vocabulary)
        states = teacher.on({"input_ids": tokens.to(device)})
        draws = self._draws(name, wanted).to(device)
        found: list[tuple[Tensor, ...]] = []
        for begin in range(0, tokens.numel(), CHUNK):
            part = slice(begin, begin + CHUNK)
            logs = states.log_probabilities(part, self.vocabulary, self.distillation.temperature)
            p, places = logs.exp(), self.settings.places
            if self.settings.method == "top":
                chosen = most_probable(p, places)
            else:
                chosen = sample(p, places, draws[part])
            found.append((*chosen, torch.special.entr(p).sum(-1)))
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]
        for column, values in zip((IDS, PROBABILITIES, ENTROPY), columns, strict=True):
            rows[column] = values.reshape(rows[column].shape)

    def _draws(self, name: str, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """A uniform number for each position; those of a row depend on the row alone."""
        length, seed = self.inputs.tree.sequence_length, self.settings.seed
        of_rows = [np.random.default_rng([seed, row, *name.encode()]) for _, row in wanted]
        return torch.from_numpy(np.concatenate([one.random(length) for one in of_rows]))

    def finish(self, entries: dict[str, dict[str, Any]]) -> None:
        """Write the indexes, then the manifest."""
        domains = {}
        for name, rows in self.domains.items():
            own = [entry for shard, entry in entries.items() if shard.rpartition("/")[0] == name]
            write_text(self.out / self.recipe.data.split / name / INDEX, index_text(own))
            domains[name] = {
                "rows": len(rows),
                "fingerprint": fingerprint(own),
                "data": self.identity["data"][name],
            }
        manifest = {**self.identity, "format": FORMAT, "domains": domains}
        write_json(self.out / MANIFEST, manifest)
