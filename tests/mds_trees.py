"""Small data trees written with Streaming, for tests of data loading alone."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

from llmshearing.data.schema import (
    FORMAT_VERSION,
    HASH,
    INDEX,
    LOSS,
    MANIFEST,
    TOKENS,
    columns,
    fingerprint,
)

LENGTH = 16
ROWS_PER_SHARD = 20  # about
VOCABULARY = 50_000


def tokens_of(domain: int, row: int) -> np.ndarray:
    """A row that starts with its domain and row number, followed by a pattern."""
    rest = (row * 31 + domain * 7 + np.arange(LENGTH - 3)) % VOCABULARY
    return np.array([domain, row % 256, row // 256, *rest], np.uint16)


def make_tree(
    root: Path,
    rows: Mapping[str, int],
    held_out: Mapping[str, int] | None = None,
    compression: str | None = None,
    chat: str = "",
) -> Path:
    """A tree with the splits `prune` and `eval`, with several shards per domain.

    Args:
        root: where.
        rows: rows of each domain to train on.
        held_out: rows of each domain to evaluate on, by default 5.
        compression: of the shards.
        chat: name of a domain whose odd positions are no targets.
    """
    held = held_out or dict.fromkeys(rows, 5)
    template = _template(tuple(rows.items()), tuple(held.items()), compression, chat)
    return Path(shutil.copytree(template, root))


@functools.cache
def _template(*arguments: Any) -> Path:
    """Write each tree once for all tests: Streaming's writer takes a second."""
    folder = tempfile.mkdtemp(prefix="mds-trees-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows, held_out, compression, chat = arguments
    return _write_tree(Path(folder) / "tree", dict(rows), dict(held_out), compression, chat)


def _write_tree(
    root: Path,
    rows: Mapping[str, int],
    held_out: Mapping[str, int],
    compression: str | None,
    chat: str,
) -> Path:
    splits: dict[str, dict[str, Any]] = {}
    for split, counts in (("prune", rows), ("eval", held_out)):
        splits[split] = {}
        for number, (name, count) in enumerate(counts.items()):
            spec = columns(LENGTH, "uint16", chat=name == chat)
            with MDSWriter(
                out=str(root / split / name),
                columns=spec,
                size_limit=ROWS_PER_SHARD * (LENGTH * (3 if name == chat else 2) + 4) + 400,
                compression=compression,
                hashes=["sha256"],
            ) as writer:
                for row in range(count):
                    sample = {TOKENS: tokens_of(number, row)}
                    if name == chat:
                        sample[LOSS] = (np.arange(LENGTH) % 2 == 0).astype(np.uint8)
                    writer.write(sample)
            splits[split][name] = {
                "rows": count,
                "tokens": count * LENGTH,
                "documents": count,
                "dropped_tokens": 0,
                "fingerprint": fingerprint_of(root / split / name),
                "chat": name == chat,
            }
    manifest = {
        "format": FORMAT_VERSION,
        "sequence_length": LENGTH,
        "token_dtype": "uint16",
        "vocabulary": VOCABULARY,
        "tokenizer": {"kind": "sentencepiece", "fingerprint": "f" * 64},
        "splits": splits,
    }
    (root / MANIFEST).write_text(json.dumps(manifest))
    return root


def replace_rows(root: Path, split: str, domain: str) -> None:
    """Replace the data of a domain as if other text had been prepared: records match the files."""
    folder = root / split / domain
    index = json.loads((folder / INDEX).read_text())
    for entry in index["shards"]:
        path = folder / entry["raw_data"]["basename"]
        flip_a_bit(path)
        entry["raw_data"]["hashes"][HASH] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / INDEX).write_text(json.dumps(index))
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["splits"][split][domain]["fingerprint"] = fingerprint_of(folder)
    (root / MANIFEST).write_text(json.dumps(manifest))


def flip_a_bit(path: Path) -> None:
    """Change one bit of the last row of a shard."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def fingerprint_of(folder: Path) -> str:
    """The fingerprint that the manifest records for a domain's shards."""
    return fingerprint(json.loads((folder / INDEX).read_text())["shards"])
