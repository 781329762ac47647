"""Units of work: pieces of raw text, each tokenised into a file that is complete or absent."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmshearing import files
from llmshearing.data.schema import LOSS, TOKENS
from llmshearing.errors import UserError
from llmshearing.preparation import encoders, fingerprints, sources
from llmshearing.preparation.chat import ChatEncoder

BATCH_BYTES = 1 << 22  # of text; gigatoken does not remember words from one batch to the next
FORMAT = 2  # of a unit's file; others are not read
LISTED_BAD_DOCUMENTS = 1000  # of a unit; all are counted
EMPTY = "empty text"
WHOLE = 1 << 64  # a bound above every hash


@dataclass(frozen=True)
class Unit:
    """A range of blocks of one file."""

    index: int  # place in the order of the text
    domain: str
    pool: str  # `train`, which is split by hash, or `eval`, which is held out as a whole
    source: sources.TextFile
    blocks: tuple[int, int]  # half-open range of the file's blocks
    part: tuple[int, int]  # place among the units of the file, and their number
    stamp: fingerprints.Stamp  # of the file when the work was planned
    keep: int = WHOLE  # documents with a smaller hash are tokenised

    @property
    def megabytes(self) -> float:
        """Approximate size of its part of the file."""
        return self.source.size / self.part[1] / 1e6

    @property
    def file_name(self) -> str:
        """Name of the unit's file in the work folder."""
        return f"{self.index:07}.unit"


@dataclass(frozen=True)
class UnitSettings:
    """What all units of a preparation share."""

    folder: Path  # of finished units
    tokenizer: encoders.TokenizerFacts
    tokenizer_path: str  # as given by the user; chat templates are read from it
    dtype: str  # of ids
    seed: int  # of the hashes of documents
    marks: encoders.Marks
    unit_bytes: int  # decides the blocks
    reads: dict[str, sources.Reads]  # by domain


@dataclass
class UnitSummary:
    """Counts of a unit."""

    index: int
    stamp: fingerprints.Stamp  # of the file that was read
    keep: int
    chunks: list[str] = field(default_factory=list)  # digests of the unit's part of the file
    lines: int = 0  # or rows, blank ones included
    documents: int = 0  # good ones
    tokenised: int = 0  # documents with a hash below `keep`
    tokens: int = 0  # of tokenised documents
    bytes: int = 0  # of the UTF-8 of tokenised documents
    bad: int = 0
    read_bytes: int = 0  # of all lines
    bad_bytes: int = 0  # of the lines of bad documents
    empty: int = 0  # documents without text: listed, but not bad, because nothing is lost
    problems: list[tuple[int, str]] = field(default_factory=list)  # line and problem, the first few
    values: dict[str, list[str]] = field(default_factory=dict)  # see `sources.Reads.select`

    def add_problem(self, document: sources.Document, problem: str) -> None:
        """Count a document that cannot be used, and list it."""
        if problem == EMPTY:
            self.empty += 1
        else:
            self.bad += 1
            self.bad_bytes += document.size
        if len(self.problems) < LISTED_BAD_DOCUMENTS:
            self.problems.append((document.line, problem))


class UnitWorker:
    """Tokenises units; each process loads the tokenizer for its first one."""

    def __init__(self, settings: UnitSettings) -> None:
        self.settings = settings

    @cached_property
    def _encoder(self) -> encoders.ReferenceEncoder | encoders.FastEncoder:
        return encoders.fastest(self.settings.tokenizer)

    @cached_property
    def _chat(self) -> ChatEncoder:
        return ChatEncoder(self.settings.tokenizer_path)

    def __call__(self, unit: Unit) -> UnitSummary:
        """Tokenise `unit` and write its file."""
        summary = UnitSummary(unit.index, unit.stamp, unit.keep)
        hashes: list[int] = []
        lengths, tokens, loss = [], [], []
        marks = self.settings.marks
        for batch in self._batches(unit, summary, hashes):
            if self.settings.reads[unit.domain].chat:
                ids, counts, targets = self._chat.encode(batch, *marks.chat)
                loss.append(targets)
            else:
                ids, counts = encoders.with_marks(*self._encoder.encode(batch), marks.text)
            tokens.append(ids.astype(self.settings.dtype))
            lengths.append(counts)
        summary.chunks = fingerprints.chunks(unit.source.path, unit.stamp, unit.part)
        table = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        summary.tokenised, summary.tokens = len(table), int(table.sum())
        head = json.dumps({**asdict(summary), "chat": bool(loss)}, ensure_ascii=False).encode()
        path = self.settings.folder / unit.file_name
        with files.writing(path, path.with_name(f".{path.name}.{os.getpid()}")) as file:
            np.save(file, np.frombuffer(head, np.uint8))
            np.save(file, np.array(hashes, np.uint64))
            np.save(file, table.astype(np.uint32))
            for part in (*tokens, *loss):
                file.write(part.data)
        return summary

    def _batches(self, unit: Unit, summary: UnitSummary, hashes: list[int]) -> Iterator[list[Any]]:
        """Read documents in batches, count them, and collect the hashes of those to tokenise."""
        settings = self.settings
        reads, parquet = settings.reads[unit.domain], unit.source.kind == "parquet"
        chat = self._chat if reads.chat else None
        batch: list[Any] = []
        size = 0
        seen: sources.Seen = {}
        for document in sources.documents(
            unit.source, unit.blocks, settings.unit_bytes, reads, seen
        ):
            summary.lines = document.line
            summary.read_bytes += document.size
            if document.blank:
                continue
            if document.problem is not None:
                summary.add_problem(document, document.problem)
                continue
            value = document.value
            try:
                if chat:
                    value = _without_nulls(value) if parquet else value
                    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
                    canonical, content = _canonical(text), chat.render(value)
                else:
                    canonical = content = _canonical(value)
            except ValueError as error:
                summary.add_problem(document, str(error))
                continue
            summary.documents += 1
            number = xxhash.xxh3_64_intdigest(canonical, settings.seed)
            if number >= unit.keep:
                continue
            hashes.append(number)
            summary.bytes += len(canonical)
            size += len(canonical)
            batch.append(content)
            del document, value, content, canonical  # a document may have 50 MB
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        summary.values = {name: sorted(values) for name, values in seen.items()}
        if batch:
            yield batch


def _canonical(value: Any) -> bytes:
    """Return the UTF-8 of a document, of which its hash is taken; a ValueError if it is bad."""
    if not isinstance(value, str):
        raise ValueError(f"found {type(value).__name__}, expected a string")
    if not value or value.isspace():
        raise ValueError(EMPTY)
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair at character {error.start}") from None


def _without_nulls(value: Any) -> Any:
    """Drop the nulls in structs: in Parquet every struct has every field."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class UnitFile:
    """A finished unit; its ids stay on disk."""

    path: Path
    head: dict[str, Any]  # the summary, and `chat`: whether it has loss masks
    hashes: np.ndarray  # uint64 [documents]
    lengths: np.ndarray  # in tokens, int64 [documents]
    offset: int  # byte at which the ids begin

    @classmethod
    def open(cls, path: Path, dtype: str) -> "UnitFile":
        """Read the tables of a unit; a UserError if the file is not as it was written."""
        head, hashes, lengths, offset = _read(path, 3)
        each = np.dtype(dtype).itemsize + (1 if head["chat"] else 0)
        if path.stat().st_size != offset + int(lengths.sum()) * each:
            raise UserError(f"found {path} cut off: remove it and run again")
        return cls(path, head, hashes, lengths.astype(np.int64), offset)

    @staticmethod
    def read_head(path: Path) -> dict[str, Any]:
        """Read only the summary of a unit; a UserError if the file is not as it was written."""
        return _read(path, 1)[0]

    def columns(self, dtype: str) -> dict[str, np.ndarray]:
        """Map the ids and, of dialogues, the loss mask: uint8, 1 for target tokens."""
        count, offset, found = int(self.lengths.sum()), self.offset, {}
        for name, kind in ((TOKENS, dtype), (LOSS, "uint8"))[: 1 + self.head["chat"]]:
            mapped = np.memmap(self.path, kind, mode="r", offset=offset, shape=(count,))
            found[name] = mapped.view(np.ndarray)  # whose slices are cheap
            offset += mapped.nbytes
        return found


def _read(path: Path, arrays: int) -> tuple[Any, ...]:
    """Read the first arrays of a unit's file and the place after them; the first holds JSON."""
    try:
        with path.open("rb") as file:
            head, *others = (np.load(file, allow_pickle=False) for _ in range(arrays))
            return json.loads(head.tobytes()), *others, file.tell()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): remove it and run again") from None
