"""Rows by number, local and remote; damaged and missing shards by name."""

import errno
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from mds_trees import flip_a_bit, make_tree, tokens_of

from llmshearing.data.domains import DomainRows, fetch_tree
from llmshearing.data.schema import TOKENS
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

ROWS = 75
# Streaming's decompression leaves closing its file to the collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "tree", {"cc": ROWS})


def read_all(rows):
    return np.stack([rows[i][TOKENS] for i in range(len(rows))])


def expected():
    return np.stack([tokens_of(0, row) for row in range(ROWS)])


def test_rows_of_a_local_folder_are_read(tree):
    rows = DomainRows("cc", tree / "prune/cc")
    assert len(rows) == ROWS
    assert len(list((tree / "prune/cc").glob("shard.*.mds"))) > 2
    assert 1 < rows.block < ROWS
    np.testing.assert_array_equal(read_all(rows), expected())


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_rows_of_a_remote_folder_are_fetched_shard_by_shard(tmp_path, compression):
    remote = make_tree(tmp_path / "remote", {"cc": ROWS}, compression=compression)
    local = tmp_path / "cache"
    fetch_tree(str(remote), local)
    assert DataTree.open(local).split("prune")["cc"].rows == ROWS
    rows = DomainRows("cc", local / "prune/cc", str(remote / "prune/cc"))
    assert not list(local.rglob("shard.*"))
    rows[ROWS - 1]
    assert len(list(local.rglob("shard.*.mds"))) == 1
    np.testing.assert_array_equal(read_all(rows), expected())


def test_compressed_local_shards_are_read_and_kept(tmp_path):
    root = make_tree(tmp_path / "tree", {"cc": ROWS}, compression="zstd")
    np.testing.assert_array_equal(read_all(DomainRows("cc", root / "prune/cc")), expected())
    assert list((root / "prune/cc").glob("*.zstd"))


def test_an_interrupted_download_is_repeated(tmp_path):
    remote, local = make_tree(tmp_path / "remote", {"cc": ROWS}), tmp_path / "cache"
    read_all(DomainRows("cc", local, str(remote / "prune/cc")))
    for shard in local.glob("shard.*.mds"):
        shard.write_bytes(shard.read_bytes()[:100])
    again = DomainRows("cc", local, str(remote / "prune/cc"))
    np.testing.assert_array_equal(read_all(again), expected())


def test_shards_may_be_evicted_from_the_cache_while_they_are_read(tmp_path):
    remote, local = make_tree(tmp_path / "remote", {"cc": ROWS}), tmp_path / "cache"
    rows = DomainRows("cc", local, str(remote / "prune/cc"))
    for i in range(ROWS):
        np.testing.assert_array_equal(rows[i][TOKENS], expected()[i])
        for shard in local.glob("shard.*.mds"):
            shard.unlink()


def test_the_number_of_open_shards_is_bounded(tree, monkeypatch):
    monkeypatch.setattr("llmshearing.data.domains.OPEN_SHARDS", 2)
    rows = DomainRows("cc", tree / "prune/cc")
    np.testing.assert_array_equal(read_all(rows), expected())
    np.testing.assert_array_equal(read_all(rows), expected())
    assert len(rows._open) == 2


def test_columns_of_another_type_are_refused(tree):
    index = tree / "prune/cc/index.json"
    index.write_text(index.read_text().replace("ndarray:uint16:16", "bytes"))
    with pytest.raises(UserError, match="column tokens is bytes, expected ndarray:TYPE:LENGTH"):
        DomainRows("cc", tree / "prune/cc")[0]


def test_an_index_with_columns_of_another_size_is_refused(tree):
    index = tree / "prune/cc/index.json"
    index.write_text(index.read_text().replace("ndarray:uint16:16", "ndarray:uint32:16"))
    with pytest.raises(UserError, match="its offsets do not fit its columns"):
        DomainRows("cc", tree / "prune/cc")[0]


def _read_in_process(local, remote):
    np.testing.assert_array_equal(read_all(DomainRows("cc", local, remote)), expected())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_several_processes_may_fetch_at_once(tmp_path):
    remote, local = make_tree(tmp_path / "remote", {"cc": ROWS}), tmp_path / "cache"
    fetch_tree(str(remote), local)
    context = multiprocessing.get_context("fork")
    arguments = (local / "prune/cc", str(remote / "prune/cc"))
    processes = [context.Process(target=_read_in_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_cached_tree_is_not_fetched_again(tmp_path):
    remote, local = make_tree(tmp_path / "remote", {"cc": ROWS}), tmp_path / "cache"
    fetch_tree(str(remote), local)
    shutil.rmtree(remote)
    fetch_tree(str(remote), local)


@pytest.mark.parametrize("what", ["prune/cc/index.json", "manifest.json"])
def test_a_remote_without_its_files_is_refused(tmp_path, what):
    remote = make_tree(tmp_path / "remote", {"cc": ROWS})
    (remote / what).unlink()
    with pytest.raises(UserError, match=f"could not fetch .*{what}"):
        fetch_tree(str(remote), tmp_path / "cache")
    assert not (tmp_path / "cache/manifest.json").exists()


def test_a_remote_that_is_not_a_tree_is_refused(tmp_path):
    remote = make_tree(tmp_path / "remote", {"cc": ROWS})
    (remote / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="found no manifest of a data tree"):
        fetch_tree(str(remote), tmp_path / "cache")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_a_remote_cannot_write_outside_of_the_cache(tmp_path, name):
    remote = make_tree(tmp_path / "remote", {"cc": ROWS})
    text = (remote / "manifest.json").read_text()
    (remote / "manifest.json").write_text(text.replace('"prune": {"cc"', f'"..": {{"{name}"'))
    with pytest.raises(UserError, match="found a domain outside of the tree"):
        fetch_tree(str(remote), tmp_path / "cache")
    index = remote / "prune/cc/index.json"
    index.write_text(index.read_text().replace("shard.00000.mds", f"{name}.mds"))
    with pytest.raises(UserError, match="found a shard outside of the folder"):
        DomainRows("cc", remote / "prune/cc")


def last_shard(tree):
    return sorted((tree / "prune/cc").glob("shard.*.mds"))[-1]


def test_a_missing_shard_is_named(tree):
    shard = last_shard(tree)
    shard.unlink()
    rows = DomainRows("cc", tree / "prune/cc")
    rows[0]
    with pytest.raises(UserError, match=f"shard .*{shard.name} of domain cc .No such file"):
        rows[ROWS - 1]


def test_a_truncated_shard_is_named(tree):
    shard = last_shard(tree)
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{shard.name} of domain cc \(\d+ bytes, expected"):
        DomainRows("cc", tree / "prune/cc")[ROWS - 1]


def test_an_overwritten_shard_is_named(tree):
    shard = last_shard(tree)
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(UserError, match=f"damaged shard .*{shard.name} of domain cc"):
        DomainRows("cc", tree / "prune/cc")[ROWS - 1]


def test_a_shard_truncated_while_it_is_read_is_named(tree):
    rows, shard = DomainRows("cc", tree / "prune/cc"), last_shard(tree)
    rows[ROWS - 2]
    os.truncate(shard, 100)
    with pytest.raises(UserError, match=rf"{shard.name} of domain cc \(it has become shorter"):
        rows[ROWS - 1]


def test_a_flipped_bit_is_found_when_a_shard_is_first_read(tree):
    shard = last_shard(tree)
    flip_a_bit(shard)
    rows = DomainRows("cc", tree / "prune/cc")
    rows[0]
    with pytest.raises(UserError, match=rf"{shard.name} of domain cc \(its content has changed"):
        rows[ROWS - 1]
    DomainRows("cc", tree / "prune/cc", by_hash=False)[ROWS - 1]


def test_a_shard_is_hashed_once_unless_it_was_modified(tree, monkeypatch):
    monkeypatch.setattr("llmshearing.data.domains.OPEN_SHARDS", 1)
    shard = last_shard(tree)
    content, modified = shard.read_bytes(), shard.stat().st_mtime_ns
    rows = DomainRows("cc", tree / "prune/cc")
    rows[ROWS - 1], rows[0]  # the last shard is closed
    flip_a_bit(shard)
    os.utime(shard, ns=(modified, modified))
    assert rows[ROWS - 1][TOKENS][-1] != expected()[ROWS - 1][-1]  # so it was not hashed again
    rows[0]
    shard.touch()
    with pytest.raises(UserError, match="its content has changed"):
        rows[ROWS - 1]
    shard.write_bytes(content)
    np.testing.assert_array_equal(rows[ROWS - 1][TOKENS], expected()[ROWS - 1])


def test_a_disk_error_names_the_shard(tree, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    rows, shard = DomainRows("cc", tree / "prune/cc"), last_shard(tree)
    rows[ROWS - 1]
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UserError, match=rf"{shard.name} of domain cc \(Input/output error\)"):
        rows[ROWS - 2]


def test_a_shard_missing_from_the_remote_is_named(tmp_path):
    remote, local = make_tree(tmp_path / "remote", {"cc": ROWS}), tmp_path / "cache"
    rows = DomainRows("cc", local, str(remote / "prune/cc"))
    last_shard(remote).unlink()
    with pytest.raises(UserError, match="could not fetch shard"):
        rows[ROWS - 1]


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"version": 1, "shards": []}), "[]"])
def test_a_damaged_index_is_refused(tree, text):
    (tree / "prune/cc/index.json").write_text(text)
    with pytest.raises(UserError, match="no usable index of domain cc at"):
        DomainRows("cc", tree / "prune/cc")


def test_a_missing_index_is_refused(tree):
    (tree / "prune/cc/index.json").unlink()
    with pytest.raises(UserError, match="no usable index of domain cc at"):
        DomainRows("cc", tree / "prune/cc")
