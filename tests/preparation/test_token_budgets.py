"""Token budgets are met where the text is there, however wrong the estimate was."""

import json

import pytest
from corpus import contents, prepare, text, write_jsonl

from llmshearing.data.tree import DataTree
from llmshearing.preparation import split_selection, units, work_plan


@pytest.fixture
def dense_first(config, source, monkeypatch):
    """A domain whose first documents have many tokens a byte, which misleads the estimate."""
    monkeypatch.setattr(work_plan, "SMALL", 1000)
    rare = ["".join(chr(0x5000 + (7 * i + j) % 9000) for j in range(300)) for i in range(50)]
    write_jsonl(source / "dense" / "a.jsonl", [*rare, *(text(i, 40) for i in range(4000))])
    settings = {
        **json.loads(config.read_text()),
        "domains": {"dense": {}},
        "splits": {"eval": {"tokens_per_domain": 2000}, "prune": {"tokens_per_domain": 20_000}},
        "unit_bytes": 200_000,
    }
    config.write_text(json.dumps(settings))
    return config


def test_more_documents_are_taken_until_the_budget_is_met(
    dense_first, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    assert prepare(dense_first) == 0
    assert "choosing more" in caplog.text
    tree = DataTree.open(tmp_path / "tree")
    about = tree.manifest["splits"]["prune"]["dense"]
    assert 20_000 <= about["tokens"] + about["dropped_tokens"] < 21_000
    assert about["lacking_tokens"] == 0
    counts = tree.manifest["domains"]["dense"]
    assert counts["tokenised"] < counts["documents"] / 2, "not all of the text is tokenised"
    monkeypatch.setattr(work_plan, "SMALL", 10**9)  # all of it
    assert prepare(dense_first, f"output={tmp_path / 'whole'}") == 0
    for split in ("eval", "prune"):
        assert contents(tmp_path / "tree" / split) == contents(tmp_path / "whole" / split)


def test_the_same_with_several_shards(dense_first, tmp_path, capsys):
    shards = [["--shard", "0/2"], ["--shard", "1/2"]]
    assert [prepare(dense_first, *shard) for shard in shards] == [0, 0]
    assert prepare(dense_first, "--merge") == 2
    assert "run the same --shard tasks (again)" in capsys.readouterr().err
    assert [prepare(dense_first, *shard) for shard in shards] == [0, 0]
    assert prepare(dense_first, "--merge") == 0
    assert prepare(dense_first, f"output={tmp_path / 'other'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "other")


def test_stopped_after_choosing_more_the_same_command_resumes(dense_first, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(split_selection, "refuse_missing", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(dense_first)
    with monkeypatch.context() as patch:
        patch.setattr(units.UnitWorker, "__call__", lambda *_: 1 / 0)  # nothing is left to tokenise
        assert prepare(dense_first) == 0
    assert prepare(dense_first, f"output={tmp_path / 'other'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "other")


def test_a_budget_is_met_although_held_out_text_is_left_out(dense_first, source, tmp_path):
    copies = (source / "dense" / "a.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (source / "copy").mkdir()
    (source / "copy" / "a.jsonl").write_text("".join(copies[50:1000]), encoding="utf-8")
    settings = json.loads(dense_first.read_text())
    settings["domains"] = {"dense": {}, "copy": {}}
    settings["splits"]["eval"] = {"tokens_per_domain": 20_000}
    dense_first.write_text(json.dumps(settings))
    assert prepare(dense_first) == 0
    tree = DataTree.open(tmp_path / "tree")
    assert not any(
        domain["lacking_tokens"]
        for split in tree.manifest["splits"].values()
        for domain in split.values()
    )
    assert sum(one["repeats_of_held_out_text"] for one in tree.manifest["domains"].values())
