"""Damaged files of a data tree are all named before a run reads them."""

import json
import os
import shutil

import pytest
from composer.core import Callback
from mds_trees import flip_a_bit, make_tree, replace_rows

from llmshearing import preflight, train
from llmshearing.data import integrity
from llmshearing.data.integrity import check_files
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

SPLITS = ("prune", "eval")


@pytest.fixture
def tree(tmp_path):
    return DataTree.open(make_tree(tmp_path / "tree", {"cc": 75, "wiki": 30}))


def problems(tree, *splits, **how):
    """The lines of the message, without the tree's folder."""
    try:
        check_files(DataTree.open(tree.root), splits or SPLITS, **how)
    except UserError as error:
        return [line.strip().removeprefix(f"{tree.root}/") for line in str(error).splitlines()[1:]]
    return []


def shards(tree, domain):
    return sorted((tree.root / domain).glob("shard.*"))


def test_an_undamaged_tree_has_no_problems(tree):
    assert problems(tree) == []
    replace_rows(tree.root, "eval", "wiki")  # files and records fit each other
    assert problems(tree) == []


def test_every_damaged_file_is_named_at_once(tree):
    missing, cut, *_, changed = shards(tree, "prune/cc")
    (held_out,) = shards(tree, "eval/wiki")
    missing.unlink()
    size = cut.stat().st_size
    os.truncate(cut, 50)
    flip_a_bit(changed)
    flip_a_bit(held_out)
    assert problems(tree) == [
        f"prune/cc/{missing.name}: no such file or directory",
        f"prune/cc/{cut.name}: 50 bytes, expected {size}",
        f"prune/cc/{changed.name}: its content has changed: its sha256 is not the recorded one",
        f"eval/wiki/{held_out.name}: its content has changed: its sha256 is not the recorded one",
    ]
    assert len(problems(tree, by_hash=False)) == 2
    assert len(problems(tree, "eval")) == 1
    assert problems(tree, cached=True) == []


def test_a_large_tree_is_checked_only_by_size_at_the_start(tree, monkeypatch):
    flip_a_bit(shards(tree, "prune/cc")[0])
    total = sum(path.stat().st_size for split in SPLITS for path in tree.root.glob(f"{split}/*/s*"))
    monkeypatch.setattr(integrity, "HASHED_AT_START_BYTES", total)
    assert len(problems(tree)) == 1
    monkeypatch.setattr(integrity, "HASHED_AT_START_BYTES", total - 1)
    assert problems(tree) == []


def test_a_compressed_tree_is_checked_by_its_compressed_files(tmp_path):
    tree = DataTree.open(make_tree(tmp_path / "tree", {"cc": 30}, compression="zstd"))
    assert problems(tree) == []
    flip_a_bit(shards(tree, "prune/cc")[0])
    assert len(problems(tree)) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_an_index_that_does_not_fit_the_manifest_is_named(tree, cached):
    for domain, change in {
        "prune/cc": lambda entry: entry | {"samples": entry["samples"] + 1},
        "prune/wiki": lambda entry: entry | {"raw_data": shards_of_another(entry["raw_data"])},
        "eval/cc": lambda entry: entry | {"raw_data": entry["raw_data"] | {"hashes": {}}},
    }.items():
        index = tree.root / domain / "index.json"
        content = json.loads(index.read_text())
        content["shards"][0] = change(content["shards"][0])
        index.write_text(json.dumps(content))
    (tree.root / "eval/wiki/index.json").write_text("{")
    found = problems(tree, cached=cached)
    assert found[0] == "prune/cc/index.json: 76 rows, expected the 75 of the manifest"
    assert "prune/wiki/index.json: lists other shards than the manifest's" in found
    assert "eval/cc/index.json: not a readable index (KeyError('sha256'))" in found
    assert any(line.startswith("eval/wiki/index.json: not a readable index") for line in found)


def shards_of_another(file):
    return file | {"hashes": {"sha256": "0" * 64}}


def test_a_run_does_not_start_on_a_damaged_tree(recipe_file, tiny_tree, tmp_path, capsys):
    root = shutil.copytree(tiny_tree, tmp_path / "tree")
    damaged = [*root.glob("prune/code/*.mds"), *root.glob("eval/prose/*.mds")]
    for path in damaged:
        flip_a_bit(path)
    assert train.main([str(recipe_file), f"data.root={root}"]) == 2
    told = capsys.readouterr().err
    assert all(f"{path}: its content has changed" in told for path in damaged)
    assert not (tmp_path / "run").exists()


class Truncate(Callback):
    """Cuts every shard of a folder after the second step."""

    def __init__(self, folder):
        self.folder = folder

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == 2:
            for path in self.folder.rglob("*.mds"):
                os.truncate(path, 500)


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_shrink_during_a_run_end_it_with_a_message(
    recipe_file, tiny_tree, tmp_path, workers
):
    root = shutil.copytree(tiny_tree, tmp_path / "tree")
    overrides = [f"data.root={root}", f"data.workers={workers}"]
    recipe, inputs = preflight.resolve(recipe_file, overrides)
    trainer = train.build_trainer(recipe, inputs, extra_callbacks=[Truncate(root / "prune")])
    with pytest.raises(UserError, match=r"\(it has become shorter while it was read\)"):
        trainer.fit()
    trainer.close()
