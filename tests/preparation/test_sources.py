"""However a file is cut into units, each line is read exactly once."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.preparation import sources


def read(path: Path, unit_bytes: int) -> list[bytes]:
    source = sources.TextFile(path, path.name, path.stat().st_size)
    ranges = sources.block_ranges(source, unit_bytes)
    assert [r[0] for r in ranges] == [0, *(r[1] for r in ranges[:-1])]
    return [line for blocks in ranges for line in sources.lines(source, blocks, unit_bytes)]


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b""))),
    unit_bytes=st.integers(1, 40),
    ended=st.booleans(),
)
def test_every_line_is_read_once_and_in_order(tmp_path_factory, lines, unit_bytes, ended):
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    if not data:
        return
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(data)
    wanted = data.split(b"\n")
    if wanted[-1] == b"":
        wanted.pop()
    assert read(path, unit_bytes) == wanted


PACKERS = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_are_cut_too(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, "COMPRESSED_BLOCK_BYTES", 64)
    lines = [b"%d " % i * (i % 17) for i in range(2000)]
    data = b"\n".join(lines)
    half = len(data) // 2
    squeezed = PACKERS[kind](data[:half]) + PACKERS[kind](data[half:])  # two members
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(squeezed)
    source = sources.TextFile(path, path.name, len(squeezed))
    assert len(sources.block_ranges(source, 64)) == sources.MAX_COMPRESSED_UNITS
    assert read(path, 64) == lines


def test_a_line_longer_than_several_units_belongs_to_the_first(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"short\n" + b"x" * 1000 + b"\nlast")
    assert read(path, 10) == [b"short", b"x" * 1000, b"last"]
