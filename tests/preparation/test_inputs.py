"""Inputs are found through links and in any case; what is not read is named with its reason."""

import gzip
import os
import random

import pytest
from corpus import prepare, text, write_jsonl

from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.preparation import inputs


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}")


def names(root, *patterns):
    return [source.name for source in inputs.find(root, list(patterns), "domain").files]


def test_folders_are_read_at_any_depth_in_the_order_of_names(tmp_path):
    touch(tmp_path, "b.jsonl", "a/z.json", "a/y.parquet", "c/d/e.json", "readme.md")
    assert names(tmp_path, ".") == ["a/y.parquet", "a/z.json", "b.jsonl", "c/d/e.json"]
    assert names(tmp_path, "a/*.json", "**/*.jsonl*") == ["a/z.json", "b.jsonl"]
    assert names(tmp_path, "c/**") == names(tmp_path, "c*") == ["c/d/e.json"]
    assert names(tmp_path, "**/d/*.json") == names(tmp_path, "c/**/*.json") == ["c/d/e.json"]
    assert names(tmp_path, str(tmp_path / "a/*")) == ["a/y.parquet", "a/z.json"]
    with pytest.raises(UserError, match=r"readme\.md: unknown suffix"):
        inputs.find(tmp_path, ["*.md"], "domain")
    with pytest.raises(UserError, match="at most once"):
        inputs.find(tmp_path, ["**/a/**"], "domain")


def test_each_pattern_has_to_find_a_file(tmp_path):
    touch(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match=r"no file for `b\*\.jsonl`"):
        inputs.find(tmp_path, ["a.jsonl", "b*.jsonl"], "domain")


def test_suffixes_are_read_in_any_case(tmp_path):
    (tmp_path / "B.JSONL.GZ").write_bytes(gzip.compress(b"{}"))
    touch(tmp_path, "A.JSONL", "C.Parquet")
    found = inputs.find(tmp_path, ["."], "domain").files
    assert [(source.name, source.kind) for source in found] == [
        ("A.JSONL", "plain"), ("B.JSONL.GZ", ".gz"), ("C.Parquet", "parquet"),
    ]  # fmt: skip


def test_links_are_followed_and_each_file_is_read_once(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(root, "z/real.jsonl")
    touch(elsewhere, "far.jsonl", "deep/file.jsonl", "single.jsonl")
    (root / "linked").symlink_to(elsewhere)
    (root / "one.jsonl").symlink_to(elsewhere / "single.jsonl")
    (root / "again").symlink_to(root / "z")
    (root / "z" / "loop").symlink_to(root)
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "deep" / "up").symlink_to(elsewhere)
    wanted = ["linked/deep/file.jsonl", "linked/far.jsonl", "one.jsonl", "z/real.jsonl"]
    found = inputs.find(root, ["."], "domain")
    assert [source.name for source in found.files] == wanted
    assert found.skipped == {
        "again": "the same as z, which is read",
        "linked/back": "the same as ., which is read",
        "linked/deep/up": "the same as linked, which is read",
        "linked/single.jsonl": "the same as one.jsonl, which is read",
        "z/loop": "the same as ., which is read",
    }
    assert names(root, "**/*.jsonl") == wanted, "a glob follows links and survives loops too"


def test_what_is_not_read_is_named_with_its_reason(tmp_path):
    touch(tmp_path, "a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", "x/.b.jsonl")
    touch(tmp_path, "a.jsonl.lz4", "c.csv", "README.md")
    (tmp_path / "part2").symlink_to(tmp_path / "unmounted")
    found = inputs.find(tmp_path, ["."], "domain")
    assert [source.name for source in found.files] == ["a.jsonl"]
    assert found.skipped == {
        "._a.jsonl": "hidden",
        ".ipynb_checkpoints": "hidden",
        "README.md": "unknown suffix",
        "a.jsonl.lz4": "unknown suffix",
        "c.csv": "read only where the pattern ends with its suffix, as in `*.csv`",
        "part2": "a link to nothing",
        "x/.b.jsonl": "hidden",
    }
    assert names(tmp_path, "*.jsonl") == ["a.jsonl"]
    assert names(tmp_path, "x/.b.jsonl") == ["x/.b.jsonl"], "a file that is named is read"


@pytest.mark.parametrize("pattern", [".", "*.jsonl", "lost.jsonl", "**/*.jsonl"])
@pytest.mark.parametrize("kind", ["a link to nothing", "not a regular file"])
def test_a_data_suffix_on_something_else_is_refused(tmp_path, pattern, kind):
    touch(tmp_path, "a.jsonl")
    if kind == "a link to nothing":
        (tmp_path / "lost.jsonl").symlink_to(tmp_path / "nothing")
    else:
        os.mkfifo(tmp_path / "lost.jsonl")
    with pytest.raises(UserError, match=f"lost.jsonl, which is {kind}"):
        inputs.find(tmp_path, [pattern], "domain")


RECORDS = b'{"text": "one"}\n{"text": "two"}\n'
ARRAY = b'[{"text": "one"}, {"text": "two"}]'
OTHER_FORMATS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s5--0.jsonl\n", "git annex get"),
    "array on a line": (ARRAY, "one JSON array"),
    "array after a newline": (b"\n" + ARRAY + b"\n", "one JSON array"),
    "array over lines": (b'[\n{"text": "one"},\n{"text": "two"}\n]\n', "one JSON array"),
    "array with a first record": (b'[{"text": "one"},\n{"text": "two"}]', "one JSON array"),
    "document": (b'{\n  "text": "one"\n}\n', "over several lines"),
    "CR": (RECORDS.replace(b"\n", b"\r"), "CR alone"),
    "UTF-16": (RECORDS.decode().encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("content", "problem"), OTHER_FORMATS.values(), ids=OTHER_FORMATS)
def test_files_that_are_not_json_lines_are_refused(tmp_path, content, problem, packed):
    touch(tmp_path, "a.jsonl")
    pointer = "git" in problem
    data = gzip.compress(content) if packed and not pointer else content
    (tmp_path / f"b.jsonl{'.gz' * packed}").write_bytes(data)
    with pytest.raises(UserError, match=f"found 1 of 2 files.*\n  b.jsonl.*{problem}"):
        inputs.find(tmp_path, ["."], "domain")


@pytest.mark.parametrize(
    "content",
    [
        RECORDS.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + RECORDS, RECORDS.strip(),
        b'{"text": "one"}\r', b'["a bad line"]\n' + RECORDS, b"\n\n" + RECORDS,
        b'{"text": "%s"}' % (b"long " * 30_000),
    ],
)  # fmt: skip
def test_json_lines_of_every_kind_are_accepted(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert names(tmp_path, ".") == ["a.jsonl"]


def test_a_file_of_which_nothing_can_be_read_fails_the_preparation(config, source, capsys):
    """It is one bad line of 191, which `bad_documents` allows."""
    (source / "web" / "b.jsonl").write_bytes(b"<html>not found</html>\n")
    assert prepare(config, "bad_documents=0.5") == 2
    message = capsys.readouterr().err
    assert "in 1 files, expected at most 10.0% of each file (bad_bytes)" in message
    assert "web/b.jsonl: 100.0% is lost, first at line 1: malformed JSON" in message
    assert prepare(config, "bad_documents=0.5", "bad_bytes=1") == 2, "nothing is too little"


def test_lost_bytes_count_as_well_as_lines(config, source, tmp_path, capsys):
    noise = random.Random(0).randbytes(9000).hex().encode()
    with (source / "web" / "a.jsonl").open("ab") as file:
        file.write(noise + b"\n")
    size = (source / "web" / "a.jsonl").stat().st_size
    assert prepare(config, "bad_documents=0.5") == 2
    assert f"a.jsonl: {18_000 / (size - 61):.1%} is lost" in capsys.readouterr().err
    assert prepare(config, "bad_documents=0.5", "bad_bytes=0.9") == 0
    assert DataTree.open(tmp_path / "tree").manifest["domains"]["web"]["bad_bytes"] == 18_000


def test_a_parquet_file_of_nulls_fails_the_preparation(config, source, capsys):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": pyarrow.array([None, None], pyarrow.string())})
    pyarrow.parquet.write_table(table, source / "web" / "b.parquet")
    assert prepare(config, "bad_documents=0.5") == 2
    assert "web/b.parquet: 100.0% is lost" in capsys.readouterr().err


def test_skipped_inputs_are_printed_and_recorded(config, source, tmp_path, capsys):
    write_jsonl(source / "web" / ".ipynb_checkpoints" / "a.jsonl", [text(7, 30)])
    (source / "web" / "notes.md").write_text("x")
    (source / "web" / "more").symlink_to(source / "web" / "deep")
    assert prepare(config) == 0
    message = capsys.readouterr().err
    assert "domain web: 3 inputs are skipped\n  web/.ipynb_checkpoints: hidden\n" in message
    assert "web/notes.md: unknown suffix" in message
    domains = DataTree.open(tmp_path / "tree").manifest["domains"]
    assert domains["web"]["skipped"] == {
        "web/.ipynb_checkpoints": "hidden",
        "web/more": "the same as web/deep, which is read",
        "web/notes.md": "unknown suffix",
    }
    assert domains["code"]["skipped"] == {}
    assert domains["web"]["documents"] == 110


def test_a_held_out_file_is_not_trained_on_under_another_name(config, source, tmp_path):
    (source / "held.jsonl").symlink_to(source / "web" / "a.jsonl")
    assert prepare(config, "domains.web.eval_files=held.jsonl") == 0
    tree = DataTree.open(tmp_path / "tree")
    assert tree.split("eval")["web"].documents == 60
    assert sum(tree.splits[s]["web"].documents for s in ("prune", "continue")) == 50
