"""From finished units to MDS: rows of fixed length across documents and files, cut into shards.

The tokens of a split of a domain, in the order of its text, are one long stream. A shard is a fixed
range of that stream, so that each can be made by itself, by any process, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.data.schema import LOSS, TOKENS
from llmshearing.preparation import mds_files, splits, units

PIECE_BYTES = 1 << 18


@dataclass(frozen=True)
class Stream:
    """The documents of a split of a domain, in order.

    Attributes:
        split: the split.
        domain: the domain.
        files: the unit files that hold the domain's text.
        before: tokens of the stream before each unit, and at last all of them.
        documents: number of documents.
        begin: first bucket of hashes.
        end: bucket after the last.
        excluded: hashes of documents that are held out elsewhere, sorted.
        layout: of the shards.
    """

    split: str
    domain: str
    files: tuple[Path, ...]
    before: tuple[int, ...]
    documents: int
    begin: int
    end: int
    excluded: np.ndarray
    layout: mds_files.ShardFormat

    @property
    def tokens(self) -> int:
        """Tokens in the stream."""
        return self.before[-1]

    @property
    def rows(self) -> int:
        """Whole rows in the stream."""
        return self.tokens // self.layout.sequence_length

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.layout.rows_per_shard)


def chosen(hashes: np.ndarray, begin: int, end: int, excluded: np.ndarray) -> np.ndarray:
    """Say of each document whether it belongs to the stretch of hashes and is not excluded."""
    bucket = splits.buckets(hashes)
    return (bucket >= begin) & (bucket < end) & ~splits.contains(excluded, hashes)


def _note(stream: Stream, index: int, notes: Path) -> Path:
    return notes / f"{stream.split}.{stream.domain}.{index:05}.json"


def entry(stream: Stream, index: int, notes: Path) -> dict[str, Any]:
    """Give what the index says of a shard that was packed."""
    about = json.loads(_note(stream, index, notes).read_text(encoding="utf-8"))
    return mds_files.shard_entry(
        stream.layout.config, index, about["rows"], about["bytes"], about["hash"]
    )


def pack(stream: Stream, index: int, root: Path, notes: Path) -> tuple[int, int]:
    """Write a shard of the stream, and beside the work a note of its size and hash.

    Returns:
        Its rows and their bytes.

    Raises:
        UserError: the file system refuses.
    """
    note = _note(stream, index, notes)
    path = root / stream.split / stream.domain / mds_files.shard_name(index)
    length, layout = stream.layout.sequence_length, stream.layout
    first = index * layout.rows_per_shard
    count = min(layout.rows_per_shard, stream.rows - first)
    if note.is_file() and path.is_file():
        return count, count * layout.row.itemsize
    header = layout.header(count)
    digest = hashlib.sha256(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    with units.writing(
        notes / f".{path.name}.{stream.split}.{stream.domain}.{os.getpid()}", path
    ) as file:
        file.write(header)
        for rows in _rows(stream, first * length, count):
            digest.update(rows.data)
            file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())
    size = len(header) + count * layout.row.itemsize
    about = {"rows": count, "bytes": size, "hash": digest.hexdigest()}
    with units.writing(notes / f".{note.name}.{os.getpid()}", note) as file:
        file.write(json.dumps(about).encode())
    return count, count * layout.row.itemsize


def _rows(stream: Stream, begin: int, count: int) -> Iterator[np.ndarray]:
    """Give `count` rows of the stream from token `begin` on, some at a time.

    Few enough that they stay in a core's cache until they are hashed and written. Each array is
    overwritten by the next.
    """
    layout = stream.layout
    length = layout.sequence_length * max(1, PIECE_BYTES // layout.row.itemsize)
    tokens = np.empty(length, layout.row[TOKENS].base)
    loss = np.empty(length, np.uint8) if layout.chat else None
    at = 0
    for data, targets in _stretches(stream, begin, begin + count * layout.sequence_length):
        done = 0
        while done < len(data):
            step = min(len(data) - done, length - at)
            tokens[at : at + step] = data[done : done + step]
            if loss is not None and targets is not None:
                loss[at : at + step] = targets[done : done + step]
            at, done = at + step, done + step
            if at == length:
                yield _as_rows(layout, tokens, loss)
                at = 0
    if at:
        yield _as_rows(layout, tokens[:at], None if loss is None else loss[:at])


def _as_rows(
    layout: mds_files.ShardFormat, tokens: np.ndarray, loss: np.ndarray | None
) -> np.ndarray:
    if loss is None:
        return tokens.view(layout.row)
    rows = np.empty(len(tokens) // layout.sequence_length, layout.row)
    rows[TOKENS] = tokens.reshape(len(rows), -1)
    rows[LOSS] = loss.reshape(len(rows), -1)
    return rows


def _stretches(
    stream: Stream, begin: int, end: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Give the tokens `begin` to `end` of the stream, in pieces, with the loss beside chat's."""
    dtype = stream.layout.dtype
    for unit, before in _units(stream, begin, end):
        tokens = unit.tokens(dtype)
        targets = unit.loss(dtype) if stream.layout.chat else None
        for first, last, position in _runs(unit, stream, before):
            # The stretch first:last of the unit stands at `position` of the stream.
            low = first + max(0, begin - position)
            high = min(last, first + end - position)
            if low < high:
                yield tokens[low:high], None if targets is None else targets[low:high]


def _units(stream: Stream, begin: int, end: int) -> Iterator[tuple[units.UnitFile, int]]:
    """Open the units that hold tokens `begin` to `end`, with the place of each in the stream."""
    first = int(np.searchsorted(stream.before, begin, side="right")) - 1
    for index in range(first, len(stream.files)):
        if stream.before[index] >= end:
            return
        if stream.before[index + 1] > stream.before[index]:
            yield (
                units.UnitFile.open(stream.files[index], stream.layout.dtype),
                stream.before[index],
            )


def _runs(unit: units.UnitFile, stream: Stream, before: int) -> Iterator[tuple[int, int, int]]:
    """Give the stretches of the unit's tokens that belong to the stream, and their places in it."""
    mask = chosen(unit.hashes, stream.begin, stream.end, stream.excluded)
    ends = np.cumsum(unit.lengths)
    edges = np.diff(np.concatenate([[0], mask.view(np.int8), [0]]))
    starts = (ends - unit.lengths)[np.flatnonzero(edges == 1)]
    stops = ends[np.flatnonzero(edges == -1) - 1]
    places = before + np.cumsum(stops - starts) - (stops - starts)
    yield from zip(starts.tolist(), stops.tolist(), places.tolist(), strict=True)
