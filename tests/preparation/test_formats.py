"""Text files, CSV, nested fields, data sets and records of questions and answers."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest
from corpus import contents, prepare, text

from llmshearing.data.tree import DataTree
from llmshearing.preparation import sources

TEXTS = [text(i, 20 + i % 40) for i in range(120)]


@pytest.fixture
def made(tmp_path, model_file):
    """Prepares one domain and gives the bytes of its rows, or the exit status."""

    def prepared(name: str, rule: dict, **changes):
        path, tree = tmp_path / f"{name}.yaml", tmp_path / name
        settings = {
            "source": str(tmp_path),
            "output": str(tree),
            "tokenizer": str(model_file),
            "sequence_length": 32,
            "domains": {"web": rule},
            "splits": {"eval": {"share": 0.1}, "prune": {"share": 1}},
            "processes": 1,
        }
        path.write_text(json.dumps(settings | changes))
        status = prepare(path)
        if status:
            return status
        return {n: one for n, one in contents(tree).items() if n.endswith(".mds")}

    return prepared


def jsonl(path, records):
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records))
    return path


@pytest.fixture
def expected(made, tmp_path):
    """The rows of `TEXTS` as JSON Lines."""
    jsonl(tmp_path / "plain.jsonl", [{"text": one} for one in TEXTS])
    return made("expected", {"files": "plain.jsonl"})


def test_a_text_file_is_one_document(made, expected, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    for i, one in enumerate(TEXTS):
        suffix = [*pack][i % 4]
        (folder / f"{i:03}.txt{suffix}").write_bytes(pack[suffix](one.encode()))
    patterns = [f"texts/*.txt{suffix}" for suffix in pack]
    assert made("txt", {"files": patterns}) == expected


def test_a_text_file_that_is_no_utf8_is_a_bad_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    file = sources.TextFile(tmp_path / "a.txt", "a.txt", 3)
    (found,) = sources.documents(file, (0, 1), 1 << 20, sources.Reads("text"))
    assert found.problem == "invalid UTF-8 at byte 2"


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_csv_with_line_breaks_and_quotes_in_its_values(made, expected, tmp_path, suffix):
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["id", "text"])
    writer.writerows([i, one] for i, one in enumerate(TEXTS))
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"a.csv{suffix}").write_bytes(pack(written.getvalue().encode()))
    assert "\n\n" in "".join(TEXTS)
    assert made("csv", {"files": f"a.csv{suffix}"}, unit_bytes=2000) == expected


def test_csv_rows_that_do_not_fit_are_bad_documents(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,good\n2\n\n3,also,more\n4,last\n")
    file = sources.TextFile(path, "a.csv", path.stat().st_size)
    found = [*sources.documents(file, (0, 1), 1 << 20, sources.Reads("text"))]
    assert [one.value for one in found] == ["good", None, None, "last"]
    assert found[1].problem == "found 1 values, expected 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "found the columns a, b in"),
        ('text\n"open\n', "correct the quotes"),
    ],
)
def test_csv_without_the_field_or_with_an_open_quote_is_refused(
    made, tmp_path, capsys, content, message
):
    (tmp_path / "a.csv").write_text(content)
    assert made("bad", {"files": "*.csv"}) == 2
    assert message in capsys.readouterr().err


def test_ndjson_and_nested_fields(made, expected, tmp_path):
    import pyarrow
    import pyarrow.parquet

    records = [{"data": {"text": one, "n": i}} for i, one in enumerate(TEXTS)]
    jsonl(tmp_path / "nested.ndjson", records)
    rule = {"text_field": "data.text"}
    assert made("nested", {"files": "nested.ndjson", **rule}) == expected
    jsonl(tmp_path / "dotted.ndjson", [{"data.text": one} for one in TEXTS])
    assert made("dotted", {"files": "dotted.ndjson", **rule}) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "nested.parquet")
    assert made("parquet", {"files": "nested.parquet", **rule}) == expected
    assert made("budget", {"files": "nested.parquet", **rule},
                splits={"eval": {"tokens_per_domain": 200}, "prune": {"share": 1}})  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_data_sets_give_the_rows_of_their_text(made, expected, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "n": [*range(len(TEXTS))]})
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    assert made("saved-tree", {"dataset": {"path": str(tmp_path / "saved")}}) == expected
    mixed = datasets.DatasetDict({"train": rows, "test": rows.select(range(3))})
    mixed.save_to_disk(tmp_path / "both")
    both = {"path": str(tmp_path / "both")}
    assert made("both-tree", {"dataset": both}) == expected
    chosen = {"dataset": {"path": str(tmp_path / "chosen")}}
    rows.select(range(0, 120, 2)).save_to_disk(tmp_path / "chosen")
    jsonl(tmp_path / "half.jsonl", [{"text": one} for one in TEXTS[::2]])
    assert made("chosen-tree", chosen) == made("half", {"files": "half.jsonl"})
    assert made("where", {"dataset": both, "where": {"n": 5}, "text_field": "absent"}) == 2
    assert "found the columns text, n in" in capsys.readouterr().err
    for wrong, message in (
        ({"split": "valid"}, "split valid (found the splits train, test)"),
        ({"split": "train[:10%]"}, "found split 'train[:10%]', expected a name such as train"),
        ({"path": str(tmp_path / "none")}, "cannot load dataset"),
    ):
        assert made("wrong", {"dataset": both | wrong}) == 2
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_data_files_is_a_data_set(made, expected, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [{"text": one} for one in TEXTS])
    assert made("tree", {"dataset": {"path": str(folder)}}) == expected


QUESTIONS = [(text(i, 5), text(i, 3), text(500 + i, 12)) for i in range(60)]


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_sharegpt_alpaca_and_prompts_are_the_chats_that_they_stand_for(
    made, tmp_path, json_folder, capsys
):
    with_input = [turns(f"{q}\n\n{more}", a) for q, more, a in QUESTIONS]
    bare = [turns(q, a) for q, _, a in QUESTIONS]
    says = {"user": "human", "assistant": "gpt"}
    forms = {
        "sharegpt": (bare, {"messages_field": "conversations"}, [
            {"conversations": [{"from": says[m["role"]], "value": m["content"]} for m in chat]}
            for chat in bare
        ]),
        "alpaca": (with_input, {"pairs": "alpaca"}, [
            {"instruction": q, "input": more, "output": a} for q, more, a in QUESTIONS
        ]),
        "bare": (bare, {"pairs": "alpaca"}, [
            {"instruction": q, "input": "", "output": a} for q, _, a in QUESTIONS
        ]),
        "prompts": (bare, {"pairs": "prompt_completion"}, [
            {"prompt": q, "completion": a} for q, _, a in QUESTIONS
        ]),
        "lists": (bare, {"pairs": "prompt_completion"}, [
            {"prompt": chat[:1], "completion": chat[1:]} for chat in bare
        ]),
    }  # fmt: skip
    for name, (chats, rule, records) in forms.items():
        jsonl(tmp_path / f"{name}.jsonl", records)
        jsonl(tmp_path / f"{name}-chats.jsonl", [{"messages": chat} for chat in chats])
        # All in one split: the documents are hashed as they are written.
        changes = {"tokenizer": str(json_folder), "splits": {"eval": {"share": 1}}}
        given = made(name, {"files": f"{name}.jsonl", **rule}, **changes)
        same = {"files": f"{name}-chats.jsonl", "messages_field": "messages"}
        assert given == made(f"{name}-same", same, **changes), name
        assert DataTree.open(tmp_path / name).split("eval")["web"].chat
    jsonl(tmp_path / "missing.jsonl", [{"instruction": "a"}])
    assert made("missing", {"files": "missing.jsonl", "pairs": "alpaca"}, **changes) == 2
    assert "no field `output`" in capsys.readouterr().err


def test_a_domain_has_one_source_and_one_kind_of_record(made, capsys):
    rule = {"files": ".", "dataset": {"path": "x"}, "text_field": "a", "pairs": "alpaca"}
    assert made("both", rule) == 2
    message = capsys.readouterr().err
    assert "domains.web: found text_field and pairs, expected one" in message
    assert "domains.web: found files and dataset, expected one" in message
