"""Rows of one domain by number, from an MDS folder that may be a cache of a remote one.

Streaming downloads, checks, decompresses and decodes; what is not taken from it is its shared
memory, which a killed run would leave behind, and its index with an entry per row.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from streaming import Stream
from streaming.base.format import Reader
from streaming.base.world import World

from llmshearing.errors import UserError


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
                f"found no usable index of domain {name} at {self.local / 'index.json'}: {error}"
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
