"""Any cut of a file into units gives each line to exactly one."""

import gzip
from pathlib import Path

import pytest
import sources
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.errors import UserError


def read(path: Path, unit_bytes: int) -> list[bytes]:
    source = sources.Source(path, path.name, path.stat().st_size)
    ranges = sources.block_ranges(source, unit_bytes)
    assert [r[0] for r in ranges] == [0, *(r[1] for r in ranges[:-1])]
    return [line for blocks in ranges for line in sources.lines(source, blocks, unit_bytes)]


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b""))),
    unit_bytes=st.integers(1, 40),
    ended=st.booleans(),
)
def test_every_line_once_and_in_order(tmp_path_factory, lines, unit_bytes, ended):
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    if not data:
        return
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(data)
    wanted = data.split(b"\n")
    if wanted[-1] == b"":
        wanted.pop()
    assert read(path, unit_bytes) == wanted


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_files_are_cut_too(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "COMPRESSED_BLOCK_BYTES", 64)
    lines = [b"%d " % i * (i % 17) for i in range(2000)]
    data = b"\n".join(lines)
    squeezed = gzip.compress(data) if kind == "gz" else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(squeezed)
    source = sources.Source(path, path.name, len(squeezed))
    assert len(sources.block_ranges(source, 64)) == sources.MAX_COMPRESSED_UNITS
    assert read(path, 64) == lines


def test_a_line_longer_than_many_units_belongs_to_the_first(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"short\n" + b"x" * 1000 + b"\nlast")
    assert read(path, 10) == [b"short", b"x" * 1000, b"last"]


def test_folders_are_read_at_any_depth_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a/z.jsonl.gz", "a/y.parquet", "c/d/e.json.zst", "readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [source.name for source in sources.find(tmp_path, ["."], "domain")]
    assert names == ["a/y.parquet", "a/z.jsonl.gz", "b.jsonl", "c/d/e.json.zst"]
    twice = sources.find(tmp_path, ["a/*.gz", "**/*.jsonl*"], "domain")
    assert [source.name for source in twice] == ["a/z.jsonl.gz", "b.jsonl"]
    with pytest.raises(UserError, match=r"readme.txt"):
        sources.find(tmp_path, ["*.txt"], "domain")
