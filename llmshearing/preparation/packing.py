"""Finished units to MDS shards: rows of fixed length that run across documents and files.

The tokens of a split of a domain, in the order of its text, form one long stream. A shard is a
fixed range of that stream, so any process can write any shard, with the same bytes.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing import files
from llmshearing.data.schema import TOKENS
from llmshearing.preparation import mds_files, splits, units


@dataclass(frozen=True)
class Stream:
    """The documents of a split of a domain, in order."""

    domain: str
    cut: splits.Cut  # the split, and the hash buckets it takes
    excluded: np.ndarray  # sorted hashes of documents that another domain holds out
    files: tuple[Path, ...]  # unit files that hold the domain's text
    before: tuple[int, ...]  # tokens of the stream before each unit, and in all of them
    documents: int
    layout: mds_files.ShardFormat

    @property
    def folder(self) -> str:
        """The split and the domain, as in the tree."""
        return f"{self.cut.split}/{self.domain}"

    @property
    def tokens(self) -> int:
        """Tokens in the stream."""
        return self.before[-1]

    @property
    def sequence_length(self) -> int:
        """Tokens per row."""
        return math.prod(self.layout.row[TOKENS].shape)

    @property
    def rows(self) -> int:
        """Whole rows in the stream."""
        return self.tokens // self.sequence_length

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.layout.rows_per_shard)


def chosen(hashes: np.ndarray, cut: splits.Cut, excluded: np.ndarray) -> np.ndarray:
    """Return for each document whether its hash is in the buckets of a split and not excluded."""
    bucket = splits.buckets(hashes)
    return (bucket >= cut.begin) & (bucket < cut.end) & ~splits.contains(excluded, hashes)


def pack(stream: Stream, index: int, root: Path, work: Path) -> dict[str, Any]:
    """Write a shard of the stream, unless it is there, and return its index entry.

    The file gets its name in the tree `root` when it is complete; until then it is in `work`.
    """
    layout = stream.layout
    path = root / stream.folder / mds_files.shard_name(index)
    if not path.is_file():
        first = index * layout.rows_per_shard
        count = min(layout.rows_per_shard, stream.rows - first)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{stream.cut.split}.{stream.domain}.{path.name}.{os.getpid()}"
        with files.writing(path, work / name) as file:
            file.write(layout.header(count))
            file.write(_rows(stream, first, count).data)
    return mds_files.read_entry(path, index)


def _rows(stream: Stream, first: int, count: int) -> np.ndarray:
    """Return `count` rows of the stream from row `first` on."""
    layout, length = stream.layout, stream.sequence_length
    columns = {
        name: np.empty(count * length, layout.row[name].base) for name in layout.row.names or ()
    }
    at = 0
    for parts in _stretches(stream, first * length, (first + count) * length):
        for name, part in parts.items():
            columns[name][at : at + len(part)] = part
        at += len(parts[TOKENS])
    rows = np.empty(count, layout.row)
    for name, column in columns.items():
        rows[name] = column.reshape(count, length)
    return rows


def _stretches(stream: Stream, begin: int, end: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of tokens `begin` to `end` of the stream in pieces that lie together."""
    dtype = stream.layout.row[TOKENS].base.name
    first = int(np.searchsorted(stream.before, begin, side="right")) - 1
    for path, before, after in zip(
        stream.files[first:], stream.before[first:], stream.before[first + 1 :], strict=False
    ):
        if before >= end:
            return
        if after == before:
            continue
        unit = units.UnitFile.open(path, dtype)
        columns = unit.columns(dtype)
        for start, stop, place in _runs(unit, stream, before):
            low, high = start + max(0, begin - place), min(stop, start + end - place)
            if low < high:
                yield {name: column[low:high] for name, column in columns.items()}


def _runs(unit: units.UnitFile, stream: Stream, before: int) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of the unit's tokens that belong to the stream: start, stop, stream place."""
    mask = chosen(unit.hashes, stream.cut, stream.excluded)
    ends = np.cumsum(unit.lengths)
    edges = np.diff(np.concatenate([[0], mask.view(np.int8), [0]]))
    starts = (ends - unit.lengths)[np.flatnonzero(edges == 1)]
    stops = ends[np.flatnonzero(edges == -1) - 1]
    places = before + np.cumsum(stops - starts) - (stops - starts)
    yield from zip(starts.tolist(), stops.tolist(), places.tolist(), strict=True)
