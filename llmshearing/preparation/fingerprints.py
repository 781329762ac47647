"""What the raw files held when they were tokenised, so that no later edit goes unnoticed.

A file counts as unchanged while its size, mtime and ctime are the same; ctime also notices an edit
that restores mtime. If they differ, for example in a copy, its content decides for a finished tree.
Hashing every file in advance would read terabytes twice, so each unit hashes its part of the file
right after reading it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from llmshearing.errors import UserError
from llmshearing.preparation.remote import RemotePath

INPUTS = "inputs.jsonl"  # in a finished tree
CHANGED = (
    "found {} changed while it was read, expected the same text throughout: run the same "
    "command again when nothing writes to the file; its pieces are then tokenised again"
)
CHUNK_BYTES = 1 << 20  # fixed, so that a file's digest does not depend on how it is cut into units

Stamp: TypeAlias = tuple[int, int, int] | tuple[int, str]
Files: TypeAlias = Mapping[str, tuple[Path | RemotePath, Stamp]]  # by name


def stamp(path: Path | RemotePath) -> Stamp:
    """Return the size of a file in bytes, and its mtime and ctime in nanoseconds.

    Of a file elsewhere, the size and the version that it was found with.
    """
    if isinstance(path, RemotePath):
        return path.stamp
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def chunks(path: Path | RemotePath, expected: Stamp, part: tuple[int, int] = (0, 1)) -> list[str]:
    """Hash the chunks of a part of a file; a UserError if it is no longer as `expected`."""
    if isinstance(path, RemotePath):  # the store records a version, so nothing is read again
        path, found = path.now(), [f"{path.stamp}"] if part[0] == 0 else []
        if path.stamp == expected:
            return found
        raise UserError(CHANGED.format(path))
    count = -(-expected[0] // CHUNK_BYTES)
    first, last = (count * index // part[1] for index in (part[0], part[0] + 1))
    try:
        with path.open("rb") as file:
            file.seek(first * CHUNK_BYTES)
            found = [xxhash.xxh3_128_hexdigest(file.read(CHUNK_BYTES)) for _ in range(first, last)]
        if stamp(path) == expected:
            return found
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    raise UserError(CHANGED.format(path))


def digest(hashed: Iterable[str]) -> str:
    """Return the digest of a file from those of its chunks."""
    return xxhash.xxh3_128_hexdigest("".join(hashed).encode())  # xxhash 4 takes bytes alone


def combined(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over the digests of all files, by name."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def record(files: Files, digests: Mapping[str, str]) -> str:
    """Return the text of `inputs.jsonl`: name, stamp and digest of each file."""
    entries = ({"file": n, "stamp": files[n][1], "digest": digests[n]} for n in sorted(digests))
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def changed(root: Path, inputs: str, files: Files) -> list[str]:
    """List the files whose content is not what a finished tree was made from.

    `inputs` is the `combined` digest in its manifest.
    """
    try:
        lines = (root / INPUTS).read_text(encoding="utf-8").splitlines()
        known: dict[str, Any] = {entry["file"]: entry for entry in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}  # compare all content with the combined digest
    digests, differing = {}, []
    for name, (path, now) in files.items():
        entry = known.get(name, {})
        same = entry.get("stamp") == list(now)
        digests[name] = entry["digest"] if same else digest(chunks(path, now))
        if digests[name] != entry.get("digest"):
            differing.append(name)
    return [] if combined(digests) == inputs else differing or sorted(files)
