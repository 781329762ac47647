"""What an output directory already holds."""

import json

import pytest

from llmshearing.errors import UserError
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.stages import Stage


def stage(tmp_path, *words, **fields):
    return Stage("export", "export it", 1.0, words or ("make", "it"), **fields)


def test_a_finished_stage_is_known_again(tmp_path):
    record = Record.open(tmp_path / "out", None)
    it = stage(tmp_path)
    record.begin(it)
    assert not record.is_done(it)
    record.end(it, 3.21, 0.5)
    again = Record.open(tmp_path / "out", None)
    assert again.is_done(it)
    assert again.done["export"] == {"seconds": 3.2, "peak_memory_gb": 0.5, "command": "make it"}
    assert not again.is_done(stage(tmp_path, "make", "another"))


def test_leftovers_go_before_a_new_attempt(tmp_path):
    record = Record.open(tmp_path / "out", None)
    record.write()
    makes, run = tmp_path / "out/model", tmp_path / "out/run"
    for folder in (makes, run):
        folder.mkdir()
        (folder / "half").write_text("")
    it = stage(tmp_path, makes=makes, run_directory=run)
    record.begin(it)
    assert not makes.exists()
    assert run.exists()  # training goes on from its checkpoint
    record.end(it, 1, 1)
    record.begin(stage(tmp_path, "another", makes=makes, run_directory=run))
    assert not run.exists()


def test_what_was_made_of_another_result_goes_too(tmp_path):
    """As where the source is trained anew with another number of processes."""
    record = Record.open(tmp_path / "out", None)
    record.write()
    made = tmp_path / "out/made"
    made.mkdir()
    source, later = stage(tmp_path), Stage("late", "late", 1.0, ("late",), run_directory=made)
    for each in (source, later):
        record.end(each, 1, 1)
    record.begin(stage(tmp_path, "another"), [later])
    assert not record.is_done(later)
    assert not made.exists()


def test_a_directory_in_use_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="in use"):
        Record.open(tmp_path, None)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_model_needs_another_directory(tmp_path):
    Record.open(tmp_path / "out", tmp_path / "llama").write()
    assert json.loads((tmp_path / "out/quickstart.json").read_text())["model"]
    with pytest.raises(UserError, match="choose another --out"):
        Record.open(tmp_path / "out", None)
