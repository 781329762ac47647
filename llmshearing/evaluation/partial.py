"""What an evaluation has measured so far, on disk until it is done, so that a killed one goes on.

Sums are keyed by the model's files and the data's indexes: another model, other weights in the same
place or other data find nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

from llmshearing.data.tree import DataTree
from llmshearing.files import write_text

log = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.bin")
MERGED = "merged.jsonl"


@dataclass(frozen=True)
class Piece:
    """Some rows of a domain that one forward pass takes.

    Attributes:
        domain: its name.
        first: number of the first row.
        rows: number of rows.
        total: sum of their losses, in nats; float64.
        count: their target tokens.
    """

    domain: str
    first: int
    rows: int
    total: float = 0.0
    count: int = 0

    def measured(self, total: float, count: int) -> Piece:
        """The same rows with their sum."""
        return dataclasses.replace(self, total=total, count=count)


def remaining(rows: Mapping[str, int], known: Sequence[Piece], batch_size: int) -> list[Piece]:
    """Cut the rows that are not known yet into batches.

    Args:
        rows: number of rows by domain.
        known: what was measured; no two pieces overlap.
        batch_size: rows of a piece at most.
    """
    todo = []
    for name, total in rows.items():
        begin = 0
        taken = sorted((p.first, p.rows) for p in known if p.domain == name)
        for first, length in [*taken, (total, 0)]:
            todo += [
                Piece(name, at, min(batch_size, first - at))
                for at in range(begin, first, batch_size)
            ]
            begin = first + length
    return todo


def fingerprint(model: Path, tree: DataTree, split: str) -> str:
    """Name a pair of weights and held-out rows.

    Weights count by name, size and time of change, since reading them twice would take as long as
    the evaluation of a small set; config and indexes count by content.
    """
    digest = xxhash.xxh3_128((model / "config.json").read_bytes())
    for file in sorted(file for pattern in WEIGHTS for file in model.glob(pattern)):
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n")
    digest.update(f"{tree.tokenizer['fingerprint']} {tree.sequence_length}\n")
    for name, info in tree.split(split).items():
        digest.update(f"{name} {info.rows} {info.fingerprint}\n")
        digest.update((info.path / "index.json").read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where partial sums are kept by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llmshearing" / "evaluate"


class Record:
    """One process's lines in the folder of an evaluation.

    Args:
        folder: of the evaluation, the same for all processes; None keeps nothing.
        rank: this process.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._file: IO[str] | None = None

    @classmethod
    def open(cls, key: str, rank: int, parent: str | Path | None = None) -> Record:
        """A record of the evaluation `key`; one that keeps nothing where no folder can be made."""
        folder = Path(parent or cache_folder()) / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("partial results are not kept, so that a kill starts over: %s", error)
            return cls(None, rank)
        return cls(folder, rank)

    def collect(self) -> list[Piece]:
        """Read what all processes noted, and put it into one file; for one process to call."""
        if self.folder is None:
            return []
        files = sorted(self.folder.glob("*.jsonl"))
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        pieces = without_overlap([piece for line in lines if (piece := _parsed(line))])
        text = "".join(json.dumps(dataclasses.asdict(piece)) + "\n" for piece in pieces)
        write_text(self.folder / MERGED, text)
        for file in files:
            if file.name != MERGED:
                file.unlink(missing_ok=True)
        return pieces

    def __enter__(self) -> Record:
        if self.folder is not None:
            self._file = (self.folder / f"rank{self.rank}.jsonl").open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, piece: Piece) -> None:
        """Note a piece at once."""
        if self._file is not None:
            self._file.write(json.dumps(dataclasses.asdict(piece)) + "\n")
            self._file.flush()

    def forget(self) -> None:
        """Remove what was noted: the result is there."""
        if self.folder is None:
            return
        for file in self.folder.glob("*.jsonl"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process is at it, or was
            self.folder.rmdir()


def without_overlap(pieces: Sequence[Piece]) -> list[Piece]:
    """Drop what was noted twice, by two evaluations of the same model at a time."""
    kept: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.domain, p.first, p.rows)):
        last = kept[-1] if kept else None
        if last is None or last.domain != piece.domain or piece.first >= last.first + last.rows:
            kept.append(piece)
    return kept


def _parsed(line: str) -> Piece | None:
    """A noted line; None where a kill cut it off."""
    try:
        return Piece(**json.loads(line))
    except (ValueError, TypeError):
        return None
