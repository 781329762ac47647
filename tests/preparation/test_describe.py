"""Damage to a tree is found and named."""

import pytest
from corpus import contents, prepare

from llmshearing import cli
from llmshearing.data.tree import DataTree


@pytest.fixture
def tree(config, tmp_path):
    assert prepare(config) == 0
    return tmp_path / "tree"


def describe(*arguments):
    return cli.main(["describe", *map(str, arguments)])


def test_counts_and_samples_of_a_whole_tree(tree, capsys):
    capsys.readouterr()
    before = contents(tree)
    assert describe(tree, "--samples", 2, "--domain", "web") == 0
    shown = capsys.readouterr().out
    held = DataTree.open(tree)
    assert f"{held.split('continue')['web'].tokens:,}" in shown
    assert held.split("continue")["web"].fingerprint[:12] in shown
    assert shown.count("prune/web row") == 2
    assert "prune/code row" not in shown
    assert "all files are as recorded" in shown
    assert contents(tree) == before


def test_a_missing_index_is_rebuilt_as_it_was(tree, caplog):
    index = tree / "continue" / "web" / "index.json"
    before = index.read_bytes()
    index.unlink()
    assert describe(tree) == 0
    assert "was missing; rebuilt" in caplog.text
    assert index.read_bytes() == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a changed byte": ("prune/web/shard.00000.mds", flip, "its content has changed"),
    "a lost shard": ("continue/web/shard.00001.mds", lambda p: p.unlink(), "no such file"),
    "a shard cut off": (
        "eval/code/shard.00000.mds", lambda p: p.write_bytes(p.read_bytes()[:-10]), "bytes, exp",
    ),
    "an empty shard": ("eval/code/shard.00000.mds", lambda p: p.write_bytes(b""), "0 bytes, exp"),
    "a damaged index": ("eval/code/index.json", lambda p: p.write_text("{"), "not a readable"),
    "an index of another": (
        "eval/code/index.json", lambda p: p.write_text('{"shards": []}'), "0 rows, expected",
    ),
    "a foreign file": ("eval/web/extra.mds", lambda p: p.write_bytes(b"x"), "does not belong"),
    "another tokenizer": ("tokenizer/tokenizer.model", flip, "not the tokenizer"),
    "no tokenizer": ("tokenizer/tokenizer.model", lambda p: p.unlink(), "tokenizer is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_reported_with_the_file(tree, capsys, name, damage, problem):
    damage(tree / name)
    assert describe(tree) == 2
    shown = [line for line in capsys.readouterr().err.splitlines() if problem in line]
    assert shown
    assert name.split("/")[0] in shown[0]


def test_a_lost_index_over_changed_shards_is_not_rebuilt(tree, capsys):
    flip(tree / "prune" / "web" / "shard.00000.mds")
    (tree / "prune" / "web" / "index.json").unlink()
    assert describe(tree) == 2
    assert "index.json: not a readable index" in capsys.readouterr().err
    assert not (tree / "prune" / "web" / "index.json").exists()
