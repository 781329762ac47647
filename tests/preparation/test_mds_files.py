"""Shards have the bytes of Streaming's own writer."""

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.data.schema import columns
from llmshearing.preparation import mds_files


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_bytes_equal_those_of_mdswriter(tmp_path, chat, dtype):
    layout = mds_files.ShardFormat(columns(8, dtype, chat=chat), size_limit=1000)
    draw = np.random.default_rng(0)
    rows = np.zeros(100, layout.row)
    rows["tokens"] = draw.integers(0, 60_000, (100, 8))
    if chat:
        rows["loss"] = draw.integers(0, 2, (100, 8))
    with MDSWriter(
        out=str(tmp_path), columns=columns(8, dtype, chat=chat), hashes=["sha256"], size_limit=1000
    ) as writer:
        for row in rows:
            writer.write({name: row[name] for name in rows.dtype.names})
    per = layout.rows_per_shard
    entries = []
    for number, first in enumerate(range(0, 100, per)):
        part = rows[first : first + per]
        data = layout.header(len(part)) + part.tobytes()
        path = tmp_path / mds_files.shard_name(number)
        assert path.read_bytes() == data
        entries.append(mds_files.read_entry(path, number))
    assert len(entries) > 1
    assert (tmp_path / "index.json").read_text() == mds_files.index_text(entries)
