"""The whole command: what it writes, and that it does not depend on how the work is divided."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import sentencepiece
from corpus import command, contents, prepare, text, write_jsonl
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from llmshearing.data.tree import DataTree


def rows(folder):
    """All rows of an MDS folder, read by the stock dataset."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
    return np.stack([dataset[i]["tokens"] for i in range(len(dataset))])


def test_rows_hold_the_documents_as_sentencepiece_encodes_them(
    config, source, model_file, tmp_path
):
    assert prepare(config) == 0
    tree = DataTree.open(tmp_path / "tree")
    assert (tree.sequence_length, tree.token_dtype, tree.vocabulary) == (32, "uint16", 420)
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    files = {"web": ["web/a.jsonl", "web/deep/b.jsonl"], "code": ["code/c.jsonl"]}
    for domain, names in files.items():
        wanted = {}
        for name in names:
            for line in (source / name).read_text(encoding="utf-8").splitlines():
                ids = [model.bos_id(), *model.encode(json.loads(line)["text"]), model.eos_id()]
                wanted[tuple(ids)] = len(wanted)
        seen, documents = [], 0
        for split in ("eval", "prune", "continue"):
            info = tree.split(split)[domain]
            flat = rows(info.path).ravel().tolist()
            assert len(flat) == info.tokens == info.rows * 32
            ends = [i + 1 for i, token in enumerate(flat) if token == model.eos_id()]
            cut = [tuple(flat[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
            places = [wanted[document] for document in cut]  # a KeyError is a wrong document
            assert places == sorted(places), "documents keep the order of the text"
            seen += places
            documents += info.documents
            assert 0 <= info.dropped_tokens < 32
        assert len(set(seen)) == len(seen), "no document is in two splits"
        assert documents == len(wanted), "every document is in a split"
        held = sum(s[domain].tokens + s[domain].dropped_tokens for s in tree.splits.values())
        assert held == sum(map(len, wanted)), "nothing is lost but the last partial rows"


@pytest.mark.parametrize(
    "cut",
    [["unit_bytes=300"], ["unit_bytes=1MiB"], ["processes=2", "unit_bytes=700"]],
    ids="-".join,
)
def test_bytes_do_not_depend_on_units_or_processes(config, tmp_path, cut):
    assert prepare(config) == 0
    assert prepare(config, f"output={tmp_path / 'other'}", *cut) == 0
    assert contents(tmp_path / "other") == contents(tmp_path / "tree")
    assert DataTree.open(tmp_path / "tree").manifest["splits"]["continue"]["web"]["shards"] > 1


def test_shards_merged_are_the_same_bytes(config, tmp_path):
    assert prepare(config) == 0
    other = f"output={tmp_path / 'other'}"
    assert prepare(config, other, "--shard", "0/3") == 0
    assert prepare(config, other, "--merge") == 2, "the other shards are missing"
    assert not (tmp_path / "other" / "manifest.json").exists()
    assert prepare(config, other, "--shard", "1/3") == 0
    assert prepare(config, other, "--shard", "2/3") == 0
    assert prepare(config, other, "--merge") == 0
    assert contents(tmp_path / "other") == contents(tmp_path / "tree")


def test_a_finished_tree_is_not_rewritten(config, tmp_path):
    assert prepare(config) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tree").rglob("*")}
    assert prepare(config) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tree").rglob("*")} == before


@pytest.mark.parametrize(
    "change", ["seed=18", "sequence_length=64", "bos=false", "splits.prune.share=0.5"]
)
def test_another_preparation_in_the_target_is_refused(config, tmp_path, capsys, change):
    assert prepare(config) == 0
    before = contents(tmp_path / "tree")
    assert prepare(config, change) == 2
    assert "another preparation" in capsys.readouterr().err
    assert contents(tmp_path / "tree") == before


def test_an_unfinished_other_preparation_is_refused(config, capsys):
    assert prepare(config, "--shard", "0/2") == 0
    assert prepare(config, "seed=18") == 2
    assert "unfinished" in capsys.readouterr().err


def test_changed_split_rules_reuse_finished_units(config, tmp_path, capsys):
    assert prepare(config, "splits.eval={share: 0.0001}", "sequence_length=2000") == 2
    assert "less than one row" in capsys.readouterr().err
    units = {p: p.stat().st_mtime_ns for p in (tmp_path / "tree" / ".prepare" / "units").iterdir()}
    assert units
    assert prepare(config, "--merge") == 0
    assert prepare(config, f"output={tmp_path / 'other'}") == 0
    assert contents(tmp_path / "other") == contents(tmp_path / "tree")


def test_a_folder_with_other_files_is_refused(config, tmp_path, capsys):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "thesis.tex").write_text("x")
    assert prepare(config) == 2
    assert "something else" in capsys.readouterr().err
    assert contents(tmp_path / "tree") == {"thesis.tex": b"x"}


def test_explicit_held_out_files_and_their_repeats(config, source, tmp_path):
    held = write_jsonl(source / "web" / "held.jsonl", [text(i, 40) for i in range(9000, 9020)])
    repeated = json.loads(held.read_text(encoding="utf-8").splitlines()[3])["text"]
    write_jsonl(source / "code" / "d.jsonl", [repeated])
    assert prepare(config, "domains.web.eval_files=web/held.jsonl") == 0
    tree = DataTree.open(tmp_path / "tree")
    assert tree.split("eval")["web"].documents == 20
    assert sum(tree.splits[s]["web"].documents for s in ("prune", "continue")) == 110
    assert sum(tree.splits[s]["code"].documents for s in tree.splits) == 80
    assert tree.manifest["domains"]["code"]["repeats_of_held_out_text"] == 1


def test_budgets_by_domain_and_by_weight(config, tmp_path, capsys):
    path = tmp_path / "budget.yaml"
    settings = json.loads(config.read_text())
    settings["splits"] = {
        "eval": {"tokens_per_domain": 200},
        "prune": {"tokens": "2k"},
        "continue": {"tokens": "1M"},
    }
    settings["domains"] = {"web": {"weight": 3}, "code": {"weight": 1}}
    path.write_text(json.dumps(settings))
    assert prepare(path) == 2
    shown = capsys.readouterr().err
    assert "the text of web, code seems to be less than the budgets ask for" in shown
    assert re.search(r"web +2 +0\.0 +[\d,]+ +751,700 +7[\d,]+", shown)
    assert "found less text than 2 budgets ask for" in shown
    assert "of 750,000 tokens" in shown
    assert prepare(path, "missing_tokens=0.9") == 2
    assert prepare(path, "missing_tokens=1") == 0
    splits = DataTree.open(tmp_path / "tree").manifest["splits"]
    for domain, asked in (("web", 1500), ("code", 500)):
        held = splits["prune"][domain]
        assert held["asked_tokens"] == asked
        assert asked <= held["tokens"] + held["dropped_tokens"] < asked + 400
        assert held["lacking_tokens"] == 0
        assert splits["continue"][domain]["lacking_tokens"] > 100_000


def test_every_kind_of_input_gives_the_same_data(config, source, tmp_path):
    import gzip

    import pyarrow
    import pyarrow.parquet
    import zstandard

    assert prepare(config) == 0
    lines = {path: path.read_bytes() for path in source.rglob("*.jsonl")}
    for path in lines:
        path.unlink()
    kinds = {
        "jsonl.gz": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
        "jsonl.zst": lambda d: b"".join(map(zstandard.ZstdCompressor().compress, (d[:99], d[99:]))),
    }
    for kind, compress in kinds.items():
        for path, data in lines.items():
            path.with_suffix(f".{kind}").write_bytes(compress(data))
        assert prepare(config, f"output={tmp_path / kind}") == 0
        same_data(tmp_path / kind, tmp_path / "tree")
        for path in source.rglob(f"*.{kind}"):
            path.unlink()
    for path, data in lines.items():
        table = pyarrow.table({"text": [json.loads(x)["text"] for x in data.splitlines()]})
        pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=7)
    assert prepare(config, f"output={tmp_path / 'parquet'}") == 0
    same_data(tmp_path / "parquet", tmp_path / "tree")


def same_data(one, other):
    for split in ("eval", "prune", "continue"):
        assert contents(one / split) == contents(other / split)


def test_domains_mixed_in_the_same_files(config, source, tmp_path):
    import pyarrow
    import pyarrow.parquet

    settings = json.loads(config.read_text())
    settings["domains"] = {
        name: {"files": "mixed", "where": {"meta.set": name}} for name in ("web", "code")
    }
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(json.dumps(settings))
    records = [
        {"text": json.loads(line)["text"], "meta": {"set": domain}}
        for domain in ("web", "code")
        for path in sorted((source / domain).rglob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    records = [record for pair in zip(records[:95], records[95:], strict=True) for record in pair]
    (source / "mixed").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (source / "mixed" / "all.jsonl").write_text(lines)
    assert prepare(config) == 0
    assert prepare(mixed, f"output={tmp_path / 'lines'}") == 0
    (source / "mixed" / "all.jsonl").unlink()
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, source / "mixed" / "all.parquet", row_group_size=11)
    assert prepare(mixed, f"output={tmp_path / 'parquet'}") == 0
    for name in ("lines", "parquet"):
        ours, apart = DataTree.open(tmp_path / name), DataTree.open(tmp_path / "tree")
        for split in apart.splits:
            for domain, info in apart.split(split).items():
                assert ours.split(split)[domain].documents == info.documents
                assert ours.split(split)[domain].tokens == info.tokens


def test_a_separator_ends_each_text(config, json_folder, tmp_path, capsys):
    change = [f"tokenizer={json_folder}", "separator=<|user|>"]
    assert prepare(config, *change) == 0
    assert "texts begin with no token and end with <|user|> (2)" in capsys.readouterr().err
    tree = DataTree.open(tmp_path / "tree")
    assert (tree.tokenizer["bos"], tree.tokenizer["eos"]) == (None, 2)
    ids = rows(tree.split("continue")["web"].path).ravel()
    count = (ids == 2).sum()
    assert tree.split("continue")["web"].documents - 1 <= count
    assert not {0, 1} & set(ids.tolist())


def test_a_vocabulary_above_65536_ids_takes_32_bits(config, json_folder, tmp_path):
    tokenizer = json.loads((json_folder / "tokenizer.json").read_text(encoding="utf-8"))
    wide = tmp_path / "wide"
    shutil.copytree(json_folder, wide)
    mark = {"id": 70_000, "content": "<|far|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({**mark, **flags})
    tokenizer["model"]["vocab"]["<|far|>"] = 70_000
    (wide / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert prepare(config, f"tokenizer={wide}") == 0
    tree = DataTree.open(tmp_path / "tree")
    assert (tree.token_dtype, tree.vocabulary) == ("uint32", 70_001)
    assert rows(tree.split("eval")["web"].path).dtype == np.uint32


def test_the_command_as_a_user_runs_it(config, tmp_path):
    began = time.monotonic()
    done = command("prepare.py", config, "processes=2")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "continue/web" in done.stdout
    assert "tokenise: " in done.stderr
    shown = re.search(r"tokenised ([\d,]+) tokens, ([\d,]+) tokens/s", done.stderr)
    tokens, rate = (int(number.replace(",", "")) for number in shown.groups())
    assert rate > tokens / seconds > 0
    failed = command("prepare.py", config, "tokeniser=x")
    assert failed.returncode == 2
    assert "did you mean tokenizer" in failed.stderr
    assert "Traceback" not in failed.stderr
