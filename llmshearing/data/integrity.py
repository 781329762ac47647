"""Whether a data tree's files are those that were prepared.

The manifest holds a fingerprint per domain: the SHA-256 over the SHA-256 of its shards, which the
domain's `index.json` lists with their sizes. Sizes cost a call per shard. Hashes cost a read of
every byte, about 1.5 GB/s per core: so a small selection of splits is hashed before the start, and
each shard of a large one when a process first reads a row of it (`DomainRows`).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from llmshearing.data.schema import HASH, INDEX, fingerprint
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

HASHED_AT_START_BYTES = 256 << 20


class Folder(Protocol):
    """What was recorded of an MDS folder."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def rows(self) -> int:
        """Its rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of its shards, in order."""
        ...


def check_files(
    tree: DataTree, splits: Sequence[str], *, cached: bool = False, by_hash: bool = True
) -> None:
    """Refuse a tree with problems, see `find_problems`, with a UserError that lists them.

    By hash, shards are hashed if all of them together have at most `HASHED_AT_START_BYTES`.
    """
    hash_limit = HASHED_AT_START_BYTES if by_hash else 0
    if problems := find_problems(tree, splits, cached=cached, hash_limit=hash_limit):
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(
            f"found damaged files in {tree.root}, expected what was recorded when "
            f"it was prepared: copy them from an undamaged tree, or prepare it again{listed}"
        )


def find_problems(
    tree: DataTree, splits: Sequence[str], *, cached: bool = False, hash_limit: float = math.inf
) -> list[str]:
    """List every file of some splits that is missing, has another size or has changed.

    Splits that the tree does not have are left out; the rest is as for `folder_problems`.
    """
    parts = (tree.splits.get(split, {}) for split in dict.fromkeys(splits))
    folders = [info for part in parts for info in part.values()]
    return folder_problems(folders, cached=cached, hash_limit=hash_limit)


def folder_problems(
    folders: Iterable[Folder], *, cached: bool = False, hash_limit: float = math.inf
) -> list[str]:
    """List every file of MDS folders that is missing, has another size or has changed.

    If `cached`, only the indexes have to be there. Shards are hashed too if all of them together
    have at most `hash_limit` bytes.
    """
    shards: list[tuple[Path, dict[str, Any]]] = []
    problems = []
    for info in folders:
        index = info.path / INDEX
        try:
            entries = json.loads(index.read_text("utf-8"))["shards"]
            rows = sum(entry["samples"] for entry in entries)
            if rows != info.rows:
                problems.append(f"{index}: {rows} rows, expected the {info.rows} of the manifest")
            elif fingerprint(entries) != info.fingerprint:
                problems.append(f"{index}: lists other shards than the manifest's")
            files = [entry["zip_data"] or entry["raw_data"] for entry in entries]
            shards += [(info.path / file["basename"], file) for file in files]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{index}: not a readable index ({error!r})")
    if not cached:
        by_hash = sum(file["bytes"] for _, file in shards) <= hash_limit
        problems += [
            f"{path}: {problem}"
            for path, file in shards
            if (problem := file_problem(path, file["bytes"], file["hashes"] if by_hash else {}))
        ]
    return problems


def file_problem(path: Path, size: int, hashes: dict[str, str]) -> str:
    """What is wrong with a file: missing, of another size, or with another hash; else nothing."""
    try:
        found = path.stat().st_size
        if found != size:
            return f"{found} bytes, expected {size}"
        if HASH in hashes and _digest(path) != hashes[HASH]:
            return f"its content has changed: its {HASH} is not the recorded one"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _digest(path: Path) -> str:
    digest = hashlib.new(HASH)
    with path.open("rb", buffering=0) as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
