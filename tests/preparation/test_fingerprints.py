"""Edited inputs: noticed in work under way and in finished trees, however they were edited."""

import json
import os
import shutil

import pytest
from corpus import contents, prepare, text, write_jsonl

from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.preparation import fingerprints


def swap_two_letters(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"the", b"eht", 1))


def swap_and_restore_the_time(path):
    before = path.stat()
    swap_two_letters(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_with_another_file(path):
    before = path.stat()
    other = path.with_name("other")
    shutil.copy2(path, other)
    swap_and_restore_the_time(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


EDITS = [swap_two_letters, swap_and_restore_the_time, replace_with_another_file]


@pytest.mark.parametrize("edit", EDITS)
def test_a_finished_tree_of_text_that_was_edited_is_not_reported_whole(
    config, source, tmp_path, capsys, edit
):
    assert prepare(config) == 0
    before = contents(tmp_path / "tree")
    edit(source / "web" / "a.jsonl")
    assert prepare(config) == 2
    assert "before web/a.jsonl changed" in capsys.readouterr().err
    assert contents(tmp_path / "tree") == before


@pytest.mark.parametrize("lost", [False, True], ids=["with a record", "without"])
def test_a_copy_of_the_text_is_the_same_text(config, source, tmp_path, lost):
    assert prepare(config) == 0
    for path in source.rglob("*.jsonl"):
        os.utime(path, (1, 1))
    if lost:
        (tmp_path / "tree" / fingerprints.INPUTS).unlink()
    assert prepare(config) == 0


@pytest.mark.parametrize("edit", EDITS)
def test_pieces_from_before_an_edit_are_tokenised_again(config, source, tmp_path, caplog, edit):
    assert prepare(config, "--shard", "0/2") == 0
    edit(source / "web" / "a.jsonl")
    assert prepare(config, "--shard", "1/2") == 0
    assert prepare(config, "--merge") == 2, "pieces of shard 0 are of the old text"
    assert prepare(config, "--shard", "0/2") == 0
    assert "web/a.jsonl changed" in caplog.text
    assert prepare(config, "--merge") == 0
    assert prepare(config, f"output={tmp_path / 'whole'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "whole")


def test_an_edit_after_packing_began_leaves_no_shard_of_the_old_text(
    config, source, tmp_path, monkeypatch
):
    from llmshearing.preparation import finish

    with monkeypatch.context() as patch:
        patch.setattr(finish, "_copy_tokenizer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config)
    swap_two_letters(source / "code" / "c.jsonl")
    assert prepare(config) == 0
    assert prepare(config, f"output={tmp_path / 'whole'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "whole")


def test_a_file_that_changes_while_it_is_read_stops_the_run(config, source, monkeypatch, capsys):
    from llmshearing.preparation import sources

    read = sources.documents

    def edits(unit, *arguments):
        yield from read(unit, *arguments)
        swap_two_letters(source / "web" / "a.jsonl")

    monkeypatch.setattr(sources, "documents", edits)
    assert prepare(config) == 2
    assert "a.jsonl changed while it was read" in capsys.readouterr().err


def test_a_digest_does_not_depend_on_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "CHUNK_BYTES", 10)
    path = tmp_path / "x"
    path.write_bytes(os.urandom(105))
    whole = fingerprints.chunks(path, fingerprints.stamp(path))
    assert len(whole) == 11
    for parts in (2, 3, 11, 40):
        cut = [
            fingerprints.chunks(path, fingerprints.stamp(path), (i, parts)) for i in range(parts)
        ]
        assert [one for part in cut for one in part] == whole
    with pytest.raises(UserError, match="cannot read"):
        fingerprints.chunks(tmp_path / "y", (1, 1, 1))


def test_the_template_belongs_to_the_preparation_of_chats(
    config, source, json_folder, tmp_path, capsys
):
    tokenizer = shutil.copytree(json_folder, tmp_path / "tokenizer")
    talk = [{"role": "user", "content": text(1, 9)}, {"role": "assistant", "content": text(2, 30)}]
    write_jsonl(source / "talk" / "t.jsonl", [])
    lines = json.dumps({"messages": talk}) + "\n"
    (source / "talk" / "t.jsonl").write_text(lines * 20)
    settings = json.loads(config.read_text())
    settings |= {
        "tokenizer": str(tokenizer),
        "domains": {"talk": {"messages_field": "messages"}},
        "splits": {"eval": {"share": 1}},
    }
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    assert prepare(config) == 0
    about = json.loads((tokenizer / "tokenizer_config.json").read_text())
    about["chat_template"] = about["chat_template"].replace("<|end|>", "<|begin|>")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(about))
    assert prepare(config) == 2
    assert "another preparation" in capsys.readouterr().err
    assert DataTree.open(tmp_path / "tree").split("eval")["talk"].documents == 20
