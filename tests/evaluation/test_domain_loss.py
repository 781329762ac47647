"""Loss per domain, against a plain loop over the stock model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import log_file, start_ranks
from streaming.base.format.mds.reader import MDSReader
from transformers import AutoModelForCausalLM

from llmshearing.cli import main
from llmshearing.data.dataset import HeldOutRows, read_rows
from llmshearing.data.domains import open_domains
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation import domain_loss
from llmshearing.evaluation.domain_loss import evaluate

VOCABULARY, LENGTH = 61, 16
ROWS = {"a": 7, "b": 3}


def shard_of(tree, domain):
    (shard,) = json.loads((tree / "eval" / domain / "index.json").read_text())["shards"]
    return shard


def plain_loop(model_directory, tree, domain, used=None):
    """Transformers' own loss, row by row, in the order of the rows."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    total, count = 0.0, 0
    rows = MDSReader.from_json(str(tree / "eval" / domain), None, shard_of(tree, domain))
    for number, row in enumerate(rows):
        if used is not None and number not in used:
            continue
        tokens = torch.tensor(row["tokens"].astype(np.int64))[None]
        labels = tokens.clone()
        if "loss" in row:
            labels[0, row["loss"] == 0] = -100
        targets = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += model(input_ids=tokens, labels=labels).loss.item() * targets
        count += targets
    return total / count, count


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_equals_a_plain_loop_at_any_batch_size(model_directory, tree, batch_size, monkeypatch):
    monkeypatch.setattr(domain_loss, "LOGIT_CHUNK", 7)
    found = evaluate(model_directory, tree / "eval", batch_size=batch_size)
    for name in ROWS:
        loss, count = plain_loop(model_directory, tree, name)
        assert found.domains[name].loss == pytest.approx(loss, abs=1e-6)
        assert found.domains[name].tokens == count
    assert found.mean == pytest.approx(sum(d.loss for d in found.domains.values()) / 2)


def test_chat_rows_count_answers_only(model_directory, tmp_path, write_tree):
    tree = write_tree(tmp_path / "chat", chat=("a",))
    found = evaluate(model_directory, tree / "eval", batch_size=4)
    loss, count = plain_loop(model_directory, tree, "a")
    assert count < ROWS["a"] * (LENGTH - 1)
    assert (found.domains["a"].loss, found.domains["a"].tokens) == (
        pytest.approx(loss, abs=1e-6),
        count,
    )


def test_bits_per_byte_where_bytes_are_known(model_directory, tree, tmp_path, write_tree):
    assert evaluate(model_directory, tree / "eval").domains["b"].bits_per_byte is None
    known = write_tree(tmp_path / "known", text_bytes=200)
    found = evaluate(model_directory, known / "eval").domains["b"]
    assert found.bits_per_byte == pytest.approx(found.loss / np.log(2) / 2)


def test_table_and_json(model_directory, tree):
    found = evaluate(model_directory, tree / "eval")
    table = str(found.as_table()).splitlines()
    assert [line.split()[0] for line in table] == ["domain", "a", "b", "mean"]
    a, mean = found.domains["a"], found.mean
    tokens = ROWS["a"] * (LENGTH - 1), sum(ROWS.values()) * (LENGTH - 1)
    assert table[1].split() == ["a", f"{a.loss:.4f}", f"{np.exp(a.loss):.2f}", "-", str(tokens[0])]
    assert table[3].split() == ["mean", f"{mean:.4f}", f"{np.exp(mean):.2f}", str(tokens[1])]
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["mean_loss"] == mean
    assert plain["domains"]["b"]["loss"] == found.domains["b"].loss
    assert plain["domains"]["b"]["rows"] == ROWS["b"]


@pytest.mark.parametrize(("limit", "used"), [(1, [0]), (3, [0, 2, 4]), (9, range(7))])
def test_rows_limits_each_domain_to_rows_that_are_evenly_spread(model_directory, tree, limit, used):
    found = evaluate(model_directory, tree / "eval", rows=limit, batch_size=2)
    loss, count = plain_loop(model_directory, tree, "a", set(used))
    assert found.domains["a"].loss == pytest.approx(loss, abs=1e-6)
    assert (found.domains["a"].tokens, found.domains["a"].rows) == (count, len(used))
    assert found.domains["b"].rows == min(limit, ROWS["b"])
    assert f"at most {limit} rows of each domain" in str(found.as_table())


def test_rows_are_those_of_a_runs_evaluation(tree):
    rows = open_domains(DataTree.open(tree), "eval")[0]
    held_out = HeldOutRows(rows, 0, LENGTH, VOCABULARY, limit=3)
    expected = held_out.__getitems__(range(3))["input_ids"]
    wanted = [(0, row) for row in domain_loss.evenly_spread(len(rows), 3)]
    tokens, _ = read_rows([rows], wanted, LENGTH, VOCABULARY)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"rows": 0}, {"rows": -1}])
def test_impossible_numbers_are_refused(model_directory, tree, numbers):
    with pytest.raises(UserError, match="expected at least 1"):
        evaluate(model_directory, tree / "eval", **numbers)


def test_changed_rows_are_refused_before_the_model_is_read(model_directory, tree):
    shard = next((tree / "eval" / "b").glob("*.mds"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (model_directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its content has changed"):
        evaluate(model_directory, tree / "eval")


def test_damaged_weights_are_refused(model_directory, tree):
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    model.lm_head.weight.data[0, 0] = float("nan")
    model.save_pretrained(model_directory)
    with pytest.raises(UserError, match="loss of nan on a, expected a number"):
        evaluate(model_directory, tree / "eval")


def test_logits_never_exist_for_all_positions(model_directory, tree, monkeypatch):
    monkeypatch.setattr(domain_loss, "LOGIT_CHUNK", 8)
    sizes = []
    linear = torch.nn.functional.linear

    def spy(x, *parameters):
        out = linear(x, *parameters)
        if out.shape[-1] == VOCABULARY:
            sizes.append(out.numel() // VOCABULARY)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    evaluate(model_directory, tree / "eval", batch_size=4)
    assert max(sizes) <= 8


def test_another_tokenizer_is_refused(model_directory, tree):
    (model_directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="another tokenizer"):
        evaluate(model_directory, tree / "eval")


def test_too_small_a_vocabulary_is_refused(model_directory, tree):
    manifest = json.loads((tree / "manifest.json").read_text())
    (tree / "manifest.json").write_text(json.dumps(manifest | {"vocabulary": VOCABULARY + 1}))
    with pytest.raises(UserError, match="61 token ids"):
        evaluate(model_directory, tree / "eval")


@pytest.mark.parametrize(
    ("folder", "message"), [("test", "expected `test`"), ("../nowhere/eval", "no data tree")]
)
def test_no_such_data(model_directory, tree, folder, message):
    with pytest.raises(UserError, match=message):
        evaluate(model_directory, tree / folder)


def test_no_such_model(tree, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        evaluate(tmp_path / "nothing", tree / "eval")


@pytest.mark.world_size(2)
def test_two_processes_give_the_number_of_one(model_directory, tree, tmp_path):
    one = evaluate(model_directory, tree / "eval", batch_size=2)
    out = tmp_path / "two.json"
    arguments = ["evaluate", str(model_directory), "--data", str(tree / "eval")]
    arguments += ["--batch-size", "2", "--json", str(out)]
    ranks = start_ranks(2, tmp_path / "logs", arguments, run=main)
    for process in ranks:
        process.join(timeout=200)
    first, second = (log_file(tmp_path / "logs", rank).read_text() for rank in range(2))
    assert [process.exitcode for process in ranks] == [0, 0], first + second
    assert json.loads(out.read_text()) == one.as_dict()
    assert first.count("domain  ") == 1
    assert re.search(r"evaluate: [\d,]+/[\d,]+ tokens, in \d+s, .* tokens/s", first)
    assert second == ""


def test_composer_is_not_needed(model_directory, tree):
    code = (
        "import sys; sys.modules['composer'] = None; "  # an import of it fails
        "from llmshearing.evaluation import benchmarks, domain_loss, score_units, throughput; "
        "from llmshearing.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "evaluate", model_directory, "--data", tree / "eval"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("domain  ")


@pytest.mark.slow
@pytest.mark.world_size(2)
@pytest.mark.parametrize("launcher", ["composer -n 2", "torchrun --nproc-per-node 2"])
def test_two_processes_of_a_launcher_give_the_number_of_one(
    model_directory, tree, tmp_path, launcher
):
    one = evaluate(model_directory, tree / "eval", batch_size=2)
    name, *words = launcher.split()
    out = tmp_path / "two.json"
    command = [Path(sys.executable).with_name(name), *words, "-m", "llmshearing.cli", "evaluate"]
    command += [model_directory, "--data", tree / "eval", "--batch-size", "2", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == one.as_dict()
    assert done.stdout.count("domain  ") == 1


@pytest.fixture
def other_model(model_directory, tmp_path):
    """The same model with other weights."""
    copy = shutil.copytree(model_directory, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    model.save_pretrained(copy)
    return copy


def test_the_divergence_from_a_teacher_is_that_of_whole_logits(model_directory, other_model, tree):
    found = evaluate(model_directory, tree / "eval", batch_size=2, teacher=other_model)
    alone = evaluate(model_directory, tree / "eval", batch_size=2)
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (model_directory, other_model)
    )
    for name in ROWS:
        total, count = 0.0, 0
        rows = MDSReader.from_json(str(tree / "eval" / name), None, shard_of(tree, name))
        for row in rows:
            tokens = torch.tensor(row["tokens"].astype(np.int64))[None]
            with torch.no_grad():
                q, p = (one(tokens).logits[0, :-1].log_softmax(-1) for one in (model, teacher))
            total += (p.exp() * (p - q)).sum().item()
            count += len(p)
        assert total / count > 1e-3
        assert found.domains[name].divergence == pytest.approx(total / count, rel=1e-4)
        assert found.domains[name].loss == alone.domains[name].loss
        assert alone.domains[name].divergence is None
    assert found.as_table().header[-1] == "divergence"
    assert "divergence" not in alone.as_table().header
    same = evaluate(model_directory, tree / "eval", teacher=model_directory)
    assert same.mean_divergence == 0
