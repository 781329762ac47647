"""`where` compares values with their types, and names a filter that matches nothing."""

import json

import pytest
from corpus import prepare, text

from llmshearing.data.tree import DataTree
from llmshearing.preparation import recipe as recipes
from llmshearing.preparation import sources

VALUES = [2023, "2023", 2024, "no", False, "en", None, 1, True, 0.5, "2023-01-05"]


def recipe(config, **where):
    settings = json.loads(config.read_text())
    settings["domains"] = {"web": {"files": "mixed", "where": where}}
    config.write_text(json.dumps(settings))
    return config


@pytest.fixture
def mixed(config, source):
    (source / "mixed").mkdir()
    with (source / "mixed" / "a.jsonl").open("w") as file:
        for i in range(20 * len(VALUES)):
            value = VALUES[i % len(VALUES)]
            record = {"text": text(i, 40), "v": value, "meta": {"v": value}}
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"text": text(0, 40) + "!"}) + "\n")
    return config


def taken(tmp_path):
    tree = DataTree.open(tmp_path / "tree")
    return sum(split["web"].documents for split in tree.splits.values())


@pytest.mark.parametrize(
    ("where", "documents"),
    [
        ({"v": 2023}, 20),
        ({"v": "2023"}, 20),
        ({"v": 2023.0}, 20),
        ({"v": "no"}, 20),
        ({"v": False}, 20),
        ({"v": 1}, 20),
        ({"v": True}, 20),
        ({"v": 0.5}, 20),
        ({"v": None}, 21),
        ({"v": [2023, "en", None]}, 61),
        ({"meta.v": "en"}, 20),
        ({"meta": {"v": ["en", 2024]}, "v": "en"}, 20),
    ],
)
def test_values_are_compared_with_their_types(mixed, tmp_path, where, documents):
    assert prepare(recipe(mixed, **where)) == 0
    assert taken(tmp_path) == documents


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("{v: 2025}", "has `v` equal to 2025; other values are"),
        ("{v: [en, 7]}", "has `v` equal to 7; other values are"),
        ("{v: '1'}", 'has `v` equal to "1"; other values are'),
        ("{v: yes, v.x: off}", 'has `v` equal to "yes"'),
        ("{lang: en}", '`lang` equal to "en"; other values are null (no such field)'),
        ("{v: en, meta.v: no text}", 'has `meta.v` equal to "no text"'),
        ("{v: 1, meta.v: en}", "no document passes all of the filters"),
    ],
)
def test_a_filter_that_matches_nothing_is_named(mixed, capsys, yaml, problem):
    recipe(mixed, v="en")
    settings = mixed.read_text().replace('{"v": "en"}', yaml)
    mixed.write_text(settings)
    assert prepare(mixed) == 2
    message = capsys.readouterr().err
    assert "domains.web.where: " in message
    assert problem in message
    assert "budget" not in message.partition("error:")[2]


def test_examples_of_the_values_found_are_given(mixed, capsys):
    assert prepare(recipe(mixed, v="fr")) == 2
    message = capsys.readouterr().err
    assert all(json.dumps(value) in message for value in ("no", "en", 2023, "2023", None))


def test_typed_values_of_parquet_files(config, source, tmp_path):
    import datetime

    import pyarrow
    import pyarrow.parquet

    days = [datetime.date(2023, 1, 5), datetime.date(2024, 2, 6)]
    columns = {"dump": [2023, 2024], "lang": ["no", "en"], "good": [True, False], "day": days}
    rows = {name: values * 40 for name, values in columns.items()}
    table = pyarrow.table({"text": [text(i, 40) for i in range(80)], **rows})
    (source / "mixed").mkdir()
    pyarrow.parquet.write_table(table, source / "mixed" / "a.parquet", row_group_size=30)
    assert prepare(recipe(config, dump=2023, lang="no", good=True, day="2023-01-05")) == 0
    assert taken(tmp_path) == 40


@pytest.mark.parametrize("value", ["[]", "[[a]]", "{}", "[{b: c}]"])
def test_a_malformed_filter_is_refused(mixed, capsys, value):
    recipe(mixed, v="en")
    mixed.write_text(mixed.read_text().replace('{"v": "en"}', f"{{v: {value}}}"))
    assert prepare(mixed) == 2
    assert "expected for each field a value or a list of values" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["2024", "no", "false", "[no]"])
def test_overrides_give_typed_values(mixed, tmp_path, value):
    """Only `true` and `false` are truth values: `no` is text, as in `lang: no` for Norwegian."""
    assert prepare(recipe(mixed, v="en"), f"domains.web.where.v={value}") == 0
    assert taken(tmp_path) == 20


def test_where_is_read_into_paths_and_json():
    assert recipes.filters({"a.b": [1, "1"], "c": {"d": None}}) == {
        ("a", "b"): ("1", '"1"'),
        ("c", "d"): ("null",),
    }
    seen: dict[str, set[str]] = {}
    reads = sources.Reads("text", ((("n",), ("15",)),))
    assert [reads.select({"n": n}, seen) for n in range(99)].count(True) == 1
    assert "15" in seen["n"]
    assert len(seen["n"]) == sources.EXAMPLES + 1
