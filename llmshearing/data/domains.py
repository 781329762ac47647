"""Rows of one domain by number, from an MDS folder that may be a cache of a remote one.

Streaming reads the index, downloads and decompresses. Its dataset is not used: it leaves shared
memory behind when a run is killed, and keeps an entry per row.
"""

import bisect
import json
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from filelock import FileLock
from streaming import Stream
from streaming.base.format.mds.reader import MDSReader
from streaming.base.storage import CloudDownloader
from streaming.base.world import World

from llmshearing.data.integrity import file_problem
from llmshearing.data.schema import INDEX, MANIFEST, row_type
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

OPEN_SHARDS = 16  # files open per domain: two of the sampler's default windows


def fetch_tree(remote: str, root: str | Path) -> None:
    """Make `root` the cache of a remote data tree: fetch its manifest and indexes.

    Files that exist are kept. Several processes may call this at the same time.

    Raises:
        UserError: a file cannot be fetched.
    """
    root, remote = Path(root), remote.rstrip("/")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".fetch.lock"):
        if (root / MANIFEST).is_file():
            return
        incoming = root / f"{MANIFEST}.incoming"  # gets its real name last
        incoming.unlink(missing_ok=True)
        _download(f"{remote}/{MANIFEST}", incoming)
        try:
            splits = json.loads(incoming.read_text(encoding="utf-8"))["splits"]
            names = [f"{split}/{name}" for split, domains in splits.items() for name in domains]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"found no manifest of a data tree at {remote}/{MANIFEST}: check data.remote"
            ) from error
        if any(not (root / name).resolve().is_relative_to(root.resolve()) for name in names):
            raise UserError(
                f"found a domain outside of the tree in {remote}/{MANIFEST}, expected folders in "
                "it: prepare the tree again"
            )
        for name in names:
            _download(f"{remote}/{name}/{INDEX}", root / name / INDEX)
        incoming.rename(root / MANIFEST)
        log.info("fetched the indexes of %d domains from %s", len(names), remote)


def _download(remote: str, local: Path) -> None:
    try:
        CloudDownloader.direct_download(remote, str(local))
    except Exception as error:  # every storage backend has its own errors
        raise UserError(f"could not fetch {remote}: {error}; check data.remote") from error


class _OpenShard:
    """An open shard.

    Its rows are read, not mapped: if a mapped file shrinks, SIGBUS kills the process.
    """

    def __init__(self, path: Path, count: int, row: np.dtype) -> None:
        self.row, self.file = row, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)
        # An MDS shard starts with the number of rows, their offsets and the offset of the end.
        header = np.frombuffer(os.pread(self.file, 4 * (count + 2), 0), np.uint32)
        if header[0] != count or (np.diff(header[1:]) != row.itemsize).any():
            raise ValueError("its offsets do not fit its columns")
        self.first = int(header[1])

    def read(self, number: int) -> Any:
        """Read a row; a ValueError if the file ends before it."""
        size = self.row.itemsize
        content = os.pread(self.file, size, self.first + number * size)
        if len(content) != size:
            raise ValueError("it has become shorter while it was read")
        return np.frombuffer(content, self.row)[0]


class DomainRows:
    """The rows of a domain; a shard is fetched and checked when one of its rows is first read.

    `local` is its MDS folder or the cache of `remote`, in any form that Streaming accepts. By hash,
    a shard is hashed then, if the index has its hash.
    """

    def __init__(
        self, name: str, local: str | Path, remote: str | None = None, *, by_hash: bool = True
    ) -> None:
        self.name, self.local, self.remote, self.by_hash = name, Path(local), remote, by_hash
        self._stream = Stream(
            remote=remote,
            local=str(local),
            download_retry=2,
            download_timeout=60,
            keep_zip=remote is None,
        )
        try:
            self._shards = cast(list[MDSReader], self._stream.get_shards(World.detect(), False))
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"found no usable index of domain {name} at {self.local / INDEX}: {error}"
            ) from error
        files = [file for shard in self._shards for pair in shard.file_pairs for file in pair]
        if any(file is not None and os.sep in file.basename for file in files):
            raise UserError(
                f"found a shard outside of the folder in {self.local / INDEX}, expected names of "
                "files in it: prepare the tree again"
            )
        sizes = [len(shard) for shard in self._shards]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._checked: dict[int, int] = {}  # modification times of the checked shards

    @property
    def block(self) -> int:
        """Rows of the largest shard."""
        return max((len(shard) for shard in self._shards), default=1)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Any:
        """The columns of a row, by name; a UserError if its shard is missing or damaged."""
        number = bisect.bisect_right(self._starts, row) - 1
        try:
            shard = self._open.get(number) or self._opened(number)
            return shard.read(row - self._starts[number])
        except (OSError, ValueError, TypeError, IndexError) as error:
            remedy = "remove it, and it is fetched" if self.remote else "copy or prepare it"
            raise UserError(
                f"found a damaged shard {self._path(number)} of domain {self.name} "
                f"({getattr(error, 'strerror', None) or error}): {remedy} again"
            ) from error

    def _opened(self, number: int) -> _OpenShard:
        """Fetch, open and check a shard."""
        self._fetch(number)
        shard, path = self._shards[number], self._path(number)
        modified = path.stat().st_mtime_ns
        if self._checked.get(number) != modified:
            file = shard.file_pairs[0][0]
            if problem := file_problem(path, file.bytes, file.hashes if self.by_hash else {}):
                raise ValueError(problem)
            self._checked[number] = modified
        columns = dict(zip(shard.column_names, shard.column_encodings, strict=True))
        opened = self._open[number] = _OpenShard(path, len(shard), row_type(columns))
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return opened

    def _path(self, number: int) -> Path:
        return self.local / self._shards[number].file_pairs[0][0].basename

    def _fetch(self, number: int) -> None:
        """Fetch or decompress a shard if needed; one process does it at a time."""
        path, shard = self._path(number), self._shards[number]
        expected = shard.file_pairs[0][0].bytes
        compressed = shard.file_pairs[0][1] is not None
        if _size(path) == expected or (self.remote is None and not compressed):
            return
        try:
            with FileLock(f"{path}.lock"):
                if _size(path) not in (expected, None) and self.remote is not None:
                    path.unlink()  # an interrupted download
                self._stream.prepare_shard(shard)
        except Exception as error:  # every storage backend has its own errors
            raise UserError(
                f"could not fetch shard {path.name} of domain {self.name} from "
                f"{self.remote or path.parent}: {error}; check that it is there"
            ) from error


def open_domains(
    tree: DataTree,
    split: str,
    names: Iterable[str] | None = None,
    *,
    remote: str | None = None,
    by_hash: bool = True,
) -> list[DomainRows]:
    """Open the named domains of a split; by default all, in the tree's order.

    `remote` is the tree that this one is a cache of, if any. A UserError names a damaged index.
    """
    held = tree.split(split)
    above = None if remote is None else f"{remote.rstrip('/')}/{split}"
    return [
        DomainRows(name, held[name].path, above and f"{above}/{name}", by_hash=by_hash)
        for name in (names or held)
    ]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
