"""Rows of one domain by number, from an MDS folder that may be a cache of a remote one.

Streaming downloads, checks, decompresses and decodes; what is not taken from it is its shared
memory, which a killed run would leave behind, and its index with an entry per row.
"""

from __future__ import annotations

import bisect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from streaming import Stream
from streaming.base.format import Reader
from streaming.base.storage import CloudDownloader
from streaming.base.world import World

from llmshearing.data.schema import MANIFEST
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.loading.inputs import DataFacts

log = logging.getLogger(__name__)

INDEX = "index.json"


def fetch_tree(remote: str, root: str | Path) -> None:
    """Make `root` the cache of a remote data tree: its manifest and indexes now, shards as needed.

    What is there already stays; several processes may call this at once.

    Args:
        remote: the tree's folder, in any form that Streaming takes.
        root: a local folder.

    Raises:
        UserError: something cannot be fetched.
    """
    root, remote = Path(root), remote.rstrip("/")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".fetch.lock"):
        if (root / MANIFEST).is_file():
            return
        incoming = root / f"{MANIFEST}.incoming"  # its right name comes last, so it means whole
        incoming.unlink(missing_ok=True)
        _download(f"{remote}/{MANIFEST}", incoming)
        try:
            splits = json.loads(incoming.read_text(encoding="utf-8"))["splits"]
            names = [f"{split}/{name}" for split, domains in splits.items() for name in domains]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"found no manifest of a data tree at {remote}/{MANIFEST}") from error
        for name in names:
            _download(f"{remote}/{name}/{INDEX}", root / name / INDEX)
        incoming.rename(root / MANIFEST)
        log.info("fetched the indexes of %d domains from %s", len(names), remote)


def data_facts(tree: DataTree, split: str, eval_split: str) -> DataFacts:
    """What mixtures and references have to fit, of a tree's splits."""
    train, held_out = tree.split(split), tree.split(eval_split)
    return DataFacts(
        domains=list(train),
        rows=[info.rows for info in train.values()],
        tokenizer=tree.tokenizer["fingerprint"],
        sequence_length=tree.sequence_length,
        fingerprints={name: info.fingerprint for name, info in held_out.items()},
    )


def _download(remote: str, local: Path) -> None:
    try:
        CloudDownloader.direct_download(remote, str(local))
    except Exception as error:  # every storage has errors of its own
        raise UserError(f"could not fetch {remote}: {error}") from error


class DomainRows(Sequence[dict[str, np.ndarray]]):
    """The rows of a domain; a shard is fetched when one of its rows is first asked for.

    Args:
        name: the domain.
        local: its MDS folder, or the cache of `remote`.
        remote: where its shards are, in any form that Streaming takes; None where they are local.
    """

    def __init__(self, name: str, local: str | Path, remote: str | None = None) -> None:
        self.name, self.local, self.remote = name, Path(local), remote
        self._stream = Stream(
            remote=remote,
            local=str(local),
            download_retry=2,
            download_timeout=60,
            keep_zip=remote is None,
        )
        try:
            self._shards: list[Reader] = self._stream.get_shards(World.detect(), False)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"found no usable index of domain {name} at {self.local / INDEX}: {error}"
            ) from error
        sizes = [len(shard) for shard in self._shards]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._ready: set[int] = set()

    @property
    def block(self) -> int:
        """Rows of the largest shard."""
        return max((len(shard) for shard in self._shards), default=1)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> dict[str, np.ndarray]:
        """Columns of a row.

        Raises:
            UserError: its shard is missing or damaged.
        """
        number = bisect.bisect_right(self._starts, row) - 1
        shard = self._shards[number]
        try:
            if number not in self._ready:
                self._fetch(number)
            return shard[row - self._starts[number]]
        except FileNotFoundError:
            self._fetch(number)  # evicted from the cache meanwhile
            return shard[row - self._starts[number]]
        except (IndexError, ValueError, TypeError, EOFError) as error:
            raise UserError(
                f"found a damaged shard {self._path(number)} of domain {self.name} (row {row}: "
                f"{error}): fetch or prepare it again"
            ) from error

    def _path(self, number: int) -> Path:
        return self.local / self._shards[number].file_pairs[0][0].basename

    def _fetch(self, number: int) -> None:
        """Have a shard on the local disk, whole, fetched by one process at a time."""
        path, shard = self._path(number), self._shards[number]
        expected = shard.file_pairs[0][0].bytes
        if not path.is_file():
            if self.remote is None and shard.file_pairs[0][1] is None:
                raise UserError(
                    f"found no shard {path} of domain {self.name}, which its index names: "
                    "fetch or prepare it again"
                )
            try:
                with FileLock(f"{path}.lock"):
                    self._stream.prepare_shard(shard)
            except Exception as error:  # every storage has errors of its own
                raise UserError(
                    f"could not fetch shard {path.name} of domain {self.name} from "
                    f"{self.remote or path.parent}: {error}"
                ) from error
        size = path.stat().st_size
        if size != expected:
            raise UserError(
                f"found {size} bytes in shard {path} of domain {self.name}, expected {expected}: "
                "fetch or prepare it again"
            )
        self._ready.add(number)
