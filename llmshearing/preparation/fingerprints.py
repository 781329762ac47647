"""What the raw files held when they were tokenised, so that no edit of them goes unnoticed.

A file counts as unchanged while its size and the times of its last change are the same. Where a
time differs, for example in a copy, the content of a finished tree's file decides. Hashing every
file before any work would read terabytes twice, so each unit hashes its part of the file right
after reading it, and takes note of the times. A time of change (ctime) cannot be set by hand, so
that an edit which restores the time of modification is noticed too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from llmshearing.errors import UserError

INPUTS = "inputs.jsonl"  # in a finished tree
CHUNK_BYTES = 1 << 20  # fixed, so that a file's digest does not depend on how it is cut into units

Stamp: TypeAlias = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """Return the size of a file in bytes, and its mtime and ctime in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def chunks(path: Path, expected: Stamp, part: tuple[int, int] = (0, 1)) -> list[str]:
    """Hash the chunks of a part of a file.

    Args:
        path: the file.
        expected: its stamp when the work was planned.
        part: which of how many equal parts.

    Raises:
        UserError: the file changed since then, or cannot be read.
    """
    count = -(-expected[0] // CHUNK_BYTES)
    first, last = (count * index // part[1] for index in (part[0], part[0] + 1))
    try:
        with path.open("rb") as file:
            file.seek(first * CHUNK_BYTES)
            found = [xxhash.xxh3_128_hexdigest(file.read(CHUNK_BYTES)) for _ in range(first, last)]
        same = stamp(path) == expected
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not same:
        raise UserError(
            f"found {path} changed while it was read, expected the same text throughout: run the "
            "same command again once it changes no more; its pieces are tokenised again"
        )
    return found


def digest(hashed: Iterable[str]) -> str:
    """Return the digest of a file from those of its chunks."""
    return xxhash.xxh3_128_hexdigest("".join(hashed))


def combined(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over the digests of all files, by name."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def record(stamps: Mapping[str, Stamp], digests: Mapping[str, str]) -> str:
    """Return the text of `inputs.jsonl`: name, stamp and digest of each file."""
    lines = [
        json.dumps({"file": name, "stamp": stamps[name], "digest": digests[name]})
        for name in sorted(digests)
    ]
    return "".join(f"{line}\n" for line in lines)


def changed(root: Path, inputs: str, paths: Mapping[str, Path]) -> list[str]:
    """List the files whose content is not what a finished tree was made from.

    Args:
        root: the tree.
        inputs: what its manifest records of them: `combined` of their digests.
        paths: the files as they are now, by name.
    """
    try:
        lines = (root / INPUTS).read_text(encoding="utf-8").splitlines()
        known: dict[str, Any] = {entry["file"]: entry for entry in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}  # the content is compared with the manifest's digest of all files
    digests, differing = {}, []
    for name, path in paths.items():
        now, held = stamp(path), known.get(name, {})
        same = held.get("stamp") == list(now)
        digests[name] = held["digest"] if same else digest(chunks(path, now))
        if digests[name] != held.get("digest"):
            differing.append(name)
    return [] if combined(digests) == inputs else differing or sorted(paths)
