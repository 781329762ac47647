"""A document that any domain holds out is trained on in none."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpus import contents, prepare, text, write_jsonl

from llmshearing.data.schema import TOKENS
from llmshearing.data.tree import DataTree
from llmshearing.preparation import splits
from llmshearing.preparation.describe import shard_rows


def documents(tree, split, domain):
    """The documents of a split as tuples of ids; the last may be cut off and is left out."""
    info, end = tree.split(split)[domain], tree.tokenizer["eos"]
    shards = tree.manifest["splits"][split][domain]["shards"]
    rows = [shard_rows(tree, info, number)[TOKENS] for number in range(shards)]
    flat = np.concatenate(rows).ravel()
    return {tuple(part) for part in np.split(flat, np.flatnonzero(flat == end) + 1)[:-1]}


def overlap(root):
    """Count the held-out documents, and those of them that a domain trains on."""
    tree = DataTree.open(root)
    held = set().union(*(documents(tree, "eval", name) for name in tree.splits["eval"]))
    trained = set().union(
        *(documents(tree, s, name) for s in tree.splits if s != "eval" for name in tree.split(s))
    )
    return len(held), len(held & trained)


@pytest.fixture
def shared_text(config, source):
    """A small domain, and a large one that holds all its text."""
    small = [text(50_000 + i, 30) for i in range(200)]
    large = [text(60_000 + i, 30) for i in range(1800)]
    write_jsonl(source / "small" / "a.jsonl", small)
    write_jsonl(source / "large" / "a.jsonl", [*large[:900], *small, *large[900:]])
    settings = {
        **json.loads(config.read_text()),
        "domains": {"small": {}, "large": {}},
        "splits": {
            "eval": {"tokens_per_domain": 4000},
            "prune": {"tokens_per_domain": 3000},
            "continue": {"share": 1},
        },
        "unit_bytes": 100_000,
    }
    config.write_text(json.dumps(settings))
    return config


def changed(config, **changes):
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))


CASES = {
    "budgets": {},
    "the large domain first": {"domains": {"large": {}, "small": {}}},
    "shares": {
        "splits": {"eval": {"share": 0.3}, "prune": {"share": 0.2}, "continue": {"share": 1}}
    },
    "three domains": {"domains": {"large": {}, "small": {}, "again": {"files": ["small", "code"]}}},
    "held-out files": {
        "domains": {"small": {"files": "code", "eval_files": "small"}, "large": {}},
        "splits": {"eval": {"share": 0.3}, "continue": {"share": 1}},
    },
}


@pytest.mark.parametrize("bits", [16, 3], ids=["", "few buckets"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_held_out_text_is_trained_on_in_no_domain(
    shared_text, tmp_path, capsys, monkeypatch, changes, bits
):
    """With few buckets, many documents are in those at the end of a split."""
    monkeypatch.setattr(splits, "BUCKET_BITS", bits)
    monkeypatch.setattr(splits, "BUCKETS", 1 << bits)
    changed(shared_text, **changes)
    assert prepare(shared_text) == 0
    held, trained = overlap(tmp_path / "tree")
    assert held > 50
    assert trained == 0
    tree = DataTree.open(tmp_path / "tree")
    shown = capsys.readouterr().out
    for name, about in tree.manifest["domains"].items():
        left_out = about["repeats_of_held_out_text"]
        assert (f"{name}: {left_out:,} documents are left out" in shown) == (left_out > 0)
        in_splits = sum(split[name].documents for split in tree.splits.values())
        assert in_splits == about["documents"] - left_out, "no other document is lost"
    repeats = [one["repeats_of_held_out_text"] for one in tree.manifest["domains"].values()]
    assert sum(repeats) or bits < 16, "the texts differ in the buckets they hold out"


def test_chats_in_parquet_equal_the_same_chats_in_json_lines(config, source, json_folder, tmp_path):
    """In Parquet every message has every field, null where it is not given."""
    chats = [
        [{"role": "user", "content": text(i, 9)}, {"role": "assistant", "content": text(-i, 20)}]
        for i in range(400)
    ]
    for name in ("lines", "table"):
        (source / name).mkdir()
    lines = (json.dumps({"messages": chat}) + "\n" for chat in chats[:100])
    (source / "lines" / "a.jsonl").write_text("".join(lines))
    padded = [[{**message, "name": None} for message in chat] for chat in chats]
    padded[-1][0]["name"] = "x"  # so that the column is there
    table = pyarrow.table({"messages": padded})
    pyarrow.parquet.write_table(table, source / "table" / "a.parquet")
    settings = {
        **json.loads(config.read_text()),
        "tokenizer": str(json_folder),
        "domains": {name: {"messages_field": "messages"} for name in ("lines", "table")},
        "splits": {"eval": {"share": 0.3}, "continue": {"share": 1}},
    }
    settings["domains"]["lines"]["eval_files"] = "lines/a.jsonl"
    settings["domains"]["lines"]["files"] = "table"
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    domains = DataTree.open(tmp_path / "tree").manifest["domains"]
    assert domains["table"]["repeats_of_held_out_text"] == 100


def test_the_same_with_several_shards(shared_text, tmp_path):
    assert prepare(shared_text) == 0
    other = f"output={tmp_path / 'other'}"
    for shard in ("0/2", "1/2"):
        assert prepare(shared_text, other, "--shard", shard) == 0
    assert prepare(shared_text, other, "--merge") == 0
    assert contents(tmp_path / "other") == contents(tmp_path / "tree")


def test_a_share_is_of_what_is_left_after_held_out_text_is_left_out(shared_text, tmp_path):
    changed(
        shared_text,
        splits={"eval": {"share": 0.3}, "prune": {"share": 0.5}, "continue": {"share": 1}},
    )
    assert prepare(shared_text) == 0
    tree = DataTree.open(tmp_path / "tree")
    prune, rest = (tree.split(name)["large"].tokens for name in ("prune", "continue"))
    assert prune == pytest.approx(rest, rel=0.02)
