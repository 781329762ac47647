"""Tables of text."""

import pytest
from terminals import pseudo_terminal

from llmshearing.tables import Table

TABLE = Table(
    "Held-out loss",
    ("domain", "loss", "tokens", "then"),
    [("wiki", "2.5", "1,024", "stops"), ("[bold]web", "12.25", "-", "")],
    notes=["mean of [two] domains"],
)


def test_plain_text_aligns_numbers_to_the_right_and_text_to_the_left():
    assert str(TABLE).splitlines() == [
        "Held-out loss",
        "domain      loss  tokens  then",
        "wiki         2.5   1,024  stops",
        "[bold]web  12.25       -",
        "mean of [two] domains",
    ]


def test_prose_is_left_aligned_and_needs_no_header():
    table = Table("", (), [("layers", "4"), ("data", "a b")], prose=True)
    assert str(table) == "layers  4\ndata    a b"


def test_a_table_without_rows_is_its_header():
    assert str(Table("", ("domain", "loss"), [])) == "domain  loss"


def test_rows_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        str(Table("", ("a", "b"), [("1", "2"), ("3",)]))


def test_elsewhere_than_on_a_terminal_plain_text_is_printed(capsys):
    TABLE.show()
    assert capsys.readouterr().out == f"{TABLE}\n"


def test_a_terminal_shows_every_cell_within_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm-256color")
    name = "a_model_with_a_name_that_does_not_fit"
    with pseudo_terminal() as (file, read):
        Table("Models", ("model", "loss"), [(name, "2.5")]).show(file)
        shown = read()
    lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").split("\r\n")
    assert "\x1b[1mModels" in shown
    assert all(len(line) <= 30 for line in lines)
    assert "".join(line.split()[0] for line in lines[2:] if line.strip()) == name
