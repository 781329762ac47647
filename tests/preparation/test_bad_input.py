"""Each way in which the text can be bad: counted and listed, or one message and status 2."""

import gzip
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from corpus import contents, prepare, text, write_jsonl

from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

UNREADABLE = Path("/sys/class/net/lo/speed")
BAD_LINES = {
    b'{"text": "cut off': "malformed JSON",
    b'["a list"]': "expected an object",
    b'{"body": "x"}': "no field `text`",
    b'{"text": 3}': "found int, expected a string",
    b'{"text": null}': "found NoneType, expected a string",
    b'{"text": "\xff\xfe"}': "invalid UTF-8",
    b'{"text": "half \\ud800"}': "surrogate",
    b'{"text": ""}': "empty text",
    b'{"text": " \\n "}': "empty text",
}


def put(source, lines, at=25):
    """Put lines into the middle of a file, with a blank line that is nobody's mistake."""
    path = source / "web" / "a.jsonl"
    old = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*old[:at], *lines, b"", *old[at:]]) + b"\n")
    return path


@pytest.mark.parametrize(("line", "problem"), BAD_LINES.items())
def test_a_bad_document_is_counted_and_listed_by_line(config, source, tmp_path, line, problem):
    put(source, [line])
    assert prepare(config, "bad_documents=0.01", "unit_bytes=500") == 0
    tree = DataTree.open(tmp_path / "tree")
    held = tree.manifest["domains"]["web"]
    assert held["bad"] + held["empty"] == 1
    assert held["documents"] == 110
    listed = (tmp_path / "tree" / "bad_documents.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(one) for one in listed]
    assert [(one["file"], one["line"]) for one in listed] == [("web/a.jsonl", 26)]
    assert problem in listed[0]["problem"]


def test_no_bad_byte_at_all_can_be_asked_for(config, source):
    assert prepare(config, "bad_bytes=0", "bad_documents=0") == 0
    put(source, [b"{"])
    other = f"output={source.parent / 'other'}"
    assert prepare(config, other, "bad_bytes=0", "bad_documents=1") == 2


def test_too_many_bad_documents_stop_the_run(config, source, tmp_path, capsys):
    put(source, [b"{", b"}"])
    assert prepare(config) == 2
    shown = capsys.readouterr().err
    assert "found 2 bad of 192 documents" in shown
    assert "web/a.jsonl:26: malformed JSON" in shown
    assert not (tmp_path / "tree" / "manifest.json").exists()
    with pytest.raises(UserError, match="unfinished"):
        DataTree.open(tmp_path / "tree")


def test_many_bad_documents_stop_a_long_run_before_its_end(config, source, monkeypatch, capsys):
    from llmshearing.preparation import prepare as module

    monkeypatch.setattr(module, "EARLY_DOCUMENTS", 100)
    put(source, [b"{"] * 50)
    assert prepare(config, "unit_bytes=1KiB") == 2
    assert "of the piece" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut off", "damaged"])
def test_damaged_compressed_files_are_named(config, source, capsys, kind, damage):
    plain = source / "web" / "a.jsonl"
    data = b"".join(json.dumps({"text": os.urandom(20).hex()}).encode() + b"\n" for _ in range(999))
    squeezed = gzip.compress(data) if kind == "gz" else zstandard.ZstdCompressor().compress(data)
    half = len(squeezed) // 2
    ruined = squeezed[:half] if damage == "cut off" else squeezed[:half] + b"\0" * half
    plain.with_suffix(f".jsonl.{kind}").write_bytes(ruined)
    assert prepare(config) == 2
    shown = capsys.readouterr().err
    assert f"a.jsonl.{kind}" in shown
    assert damage in shown


def test_a_damaged_parquet_file_is_named(config, source, capsys):
    (source / "web" / "x.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    assert prepare(config) == 2
    assert "x.parquet" in capsys.readouterr().err


def test_an_empty_file_is_named(config, source, capsys):
    (source / "web" / "x.jsonl").write_bytes(b"")
    assert prepare(config) == 2
    assert "x.jsonl" in capsys.readouterr().err


def test_an_unreadable_file_is_named(config, source, capsys, monkeypatch):
    if os.geteuid() != 0:
        (source / "web" / "a.jsonl").chmod(0)
    else:  # nothing is unreadable to root, but a folder in place of a file is
        from llmshearing.preparation import inputs

        found = inputs.find

        def find(root, patterns, what):
            listed = found(root, patterns, what)
            shutil.rmtree(root / "web", ignore_errors=True)
            (root / "web" / "a.jsonl").mkdir(parents=True)
            return listed

        monkeypatch.setattr(inputs, "find", find)
    assert prepare(config, "domains={web: {files: web/a.jsonl}, code: {}}") == 2
    shown = capsys.readouterr().err
    assert "a.jsonl" in shown
    assert "cannot read" in shown


def test_a_full_disk_ends_with_a_message_and_can_be_resumed(config, tmp_path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    run = "import sys; from llmshearing.cli import main; sys.exit(main(['prepare', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", full + run, str(config), "unit_bytes=64KiB"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "File too large. Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "tree").rglob(".*unit.*")), "no temporary file is left"
    assert prepare(config, "unit_bytes=64KiB") == 0
    assert prepare(config, f"output={tmp_path / 'other'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "other")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source=/nowhere", "found no folder /nowhere"),
        ("domains.web.files=nothing/*.jsonl", "found no file for `nothing/*.jsonl`"),
        ("tokenizer=/nowhere", "found no tokenizer at /nowhere"),
        ("sequence_length=1", "sequence_length: found 1, expected 2 or more"),
        ("splits.train.share=1", "splits.train: found 'train', expected 'eval', 'prune'"),
        ("splits.prune.tokens=10", "expected one of tokens, tokens_per_domain, share"),
        ("splits.prune.share=2", "splits.prune.share: found 2, expected at most 1"),
        ("domains.web.text_fields=x", "did you mean domains.web.text_field"),
        ("unit_bytes=3 apples", "unit_bytes"),
        ("domains.web.messages_field=messages", "chat template"),
        ("bos=maybe", "bos: found 'maybe', expected true or false"),
        ("domains.web.files=3", "domains.web.files: found 3, expected a folder or glob"),
        ("domains.web.files=[]", "domains.web.files: found [], expected a folder or glob"),
    ],
)
def test_a_wrong_setting_is_one_message(config, capsys, override, message):
    assert prepare(config, override) == 2
    assert message in capsys.readouterr().err


def test_all_wrong_settings_are_reported_at_once(config, capsys):
    assert prepare(config, "sequence_length=1", "bad_documents=7", "processes=-1") == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in ("sequence_length", "bad_documents", "processes"))


def test_a_file_that_is_not_a_tokenizer_is_named(config, tmp_path, capsys):
    (tmp_path / "x.model").write_bytes(b"not a model")
    assert prepare(config, f"tokenizer={tmp_path / 'x.model'}") == 2
    assert "x.model" in capsys.readouterr().err


def test_a_new_input_file_in_unfinished_work_is_refused(config, source, capsys):
    assert prepare(config, "--shard", "0/2") == 0
    write_jsonl(source / "web" / "new.jsonl", [text(1, 9)])
    assert prepare(config) == 2
    assert "of other files" in capsys.readouterr().err


class Attack:
    """Unpickling this makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("place", ["unit", "head"])
def test_a_unit_file_that_holds_a_pickle_is_not_executed(config, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    assert prepare(config, "--shard", "0/2") == 0
    unit = min((tmp_path / "tree" / ".prepare" / "units").iterdir())
    data = unit.read_bytes()
    with unit.open("wb") as file:
        np.save(file, np.array([Attack()], object), allow_pickle=True)
        file.write(data)
    if place == "unit":
        unit.write_bytes(pickle.dumps(Attack()))
    assert prepare(config) == 2
    assert not (tmp_path / "attacked").exists()


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file of Linux that cannot be read")
def test_a_file_that_fails_while_it_is_read_is_named(config, source, capsys):
    """A read error, unlike one of opening, does not know the file's name."""
    (source / "web" / "z.jsonl").symlink_to(UNREADABLE)
    assert prepare(config) == 2
    told = capsys.readouterr().err
    assert "web/z.jsonl: cannot be read: Invalid argument" in told
    assert "Traceback" not in told


def test_a_system_error_without_a_known_remedy_is_one_message(config, tmp_path, capsys):
    """ELOOP: the work folder is a link to itself."""
    (tmp_path / "tree").mkdir()
    loop = tmp_path / "tree" / ".prepare"
    loop.symlink_to(loop)
    assert prepare(config) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert str(loop) in told
    assert "Traceback" not in told
