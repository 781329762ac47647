"""MDS shards of rows of fixed length, written whole, with the bytes of Streaming's MDSWriter.

MDSWriter takes one sample at a time through Python and keeps what it has written in memory until
the end. Rows of fixed length need neither: a shard is a header and an array.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.data.schema import HASH, row_type


@dataclass(frozen=True)
class ShardFormat:
    """Layout of the shards of a domain."""

    columns: dict[str, str]  # Streaming's encodings by name, in the order of the names
    size_limit: int  # bytes of a shard

    @property
    def row(self) -> np.dtype:
        """The layout of a row: its columns in the order of their names."""
        return row_type(self.columns)

    @property
    def config(self) -> dict[str, Any]:
        """What Streaming records in each shard and in the index."""
        return {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [HASH],
            "size_limit": self.size_limit,
            "column_names": list(self.columns),
            "column_encodings": list(self.columns.values()),
            "column_sizes": [self.row[name].itemsize for name in self.columns],
        }

    @property
    def rows_per_shard(self) -> int:
        """Rows that fit in a shard; at least one."""
        return max(1, (self.size_limit - len(self.header(0))) // (self.row.itemsize + 4))

    def header(self, rows: int) -> bytes:
        """Return the bytes before the rows: their number, their offsets, the config."""
        config = json.dumps(self.config, sort_keys=True).encode()
        begin = 4 + 4 * (rows + 1) + len(config)
        offsets = begin + np.arange(rows + 1, dtype=np.uint64) * self.row.itemsize
        return np.uint32(rows).tobytes() + offsets.astype("<u4").tobytes() + config


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard.{index:05}.mds"


def read_entry(path: Path, index: int) -> dict[str, Any]:
    """Return the index entry of a shard file; a ValueError if it is no shard."""
    data = path.read_bytes()
    rows, begin = np.frombuffer(data, "<u4", 2).tolist()
    config = json.loads(data[4 * (rows + 2) : begin])
    hashes = {HASH: hashlib.new(HASH, data).hexdigest()}
    raw = {"basename": shard_name(index), "bytes": len(data), "hashes": hashes}
    return {"samples": rows, "raw_data": raw, "zip_data": None, **config}


def index_text(entries: list[dict[str, Any]]) -> str:
    """Return the text of `index.json`."""
    return json.dumps({"version": 2, "shards": entries}, sort_keys=True)
