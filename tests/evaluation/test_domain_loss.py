"""Loss per domain, against a plain loop over the stock model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming.base.format.mds.reader import MDSReader
from transformers import AutoModelForCausalLM

from llmshearing.errors import UserError
from llmshearing.evaluation import domain_loss
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.evaluation.partial import Piece, remaining, without_overlap

VOCABULARY, LENGTH = 61, 16
ROWS = {"a": 7, "b": 3}


def shard_of(tree, domain):
    (shard,) = json.loads((tree / "eval" / domain / "index.json").read_text())["shards"]
    return shard


def plain_loop(model_directory, tree, domain):
    """Transformers' own loss, row by row, in the order of the rows."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    total, count = 0.0, 0
    for row in MDSReader.from_json(str(tree / "eval" / domain), None, shard_of(tree, domain)):
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
    table = found.as_table().splitlines()
    assert [line.split()[0] for line in table] == ["domain", "a", "b", "mean"]
    assert f"{found.domains['a'].loss:.4f}" in table[1]
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["domains"]["b"]["loss"] == found.domains["b"].loss


def test_logits_never_exist_for_all_positions(model_directory, tree, monkeypatch):
    monkeypatch.setattr(domain_loss, "LOGIT_CHUNK", 8)
    sizes = []
    head = torch.nn.Linear.forward

    def spy(self, x):
        out = head(self, x)
        if out.shape[-1] == VOCABULARY:
            sizes.append(out.numel() // VOCABULARY)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", spy)
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


class Killed(BaseException):
    """What a kill looks like from inside."""


def kill_after(monkeypatch, forwards):
    """Have the next evaluation end after some forward passes; gives what it counts."""
    seen = []
    real = domain_loss.token_losses

    def counted(model, tokens, labels):
        if len(seen) == forwards:
            raise Killed
        seen.append(len(tokens))
        return real(model, tokens, labels)

    monkeypatch.setattr(domain_loss, "token_losses", counted)
    return seen


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_killed_evaluation_goes_on(model_directory, tree, cache, monkeypatch, batch_size):
    whole = evaluate(model_directory, tree / "eval", batch_size=2)
    assert not list(cache.iterdir()), "a finished evaluation leaves nothing"
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(model_directory, tree / "eval", batch_size=2)
    (file,) = cache.glob("*/rank0.jsonl")
    file.write_text(file.read_text() + '{"domain": "b", "first": 0, "ro')  # cut off by the kill
    seen = kill_after(monkeypatch, 100)
    again = evaluate(model_directory, tree / "eval", batch_size=batch_size)
    assert sum(seen) == sum(ROWS.values()) - 6
    if batch_size == 2:
        assert again == whole
    assert again.mean == pytest.approx(whole.mean, abs=1e-6)
    assert not list(cache.iterdir())


def test_other_weights_in_the_same_place_start_over(model_directory, tree, cache, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(model_directory, tree / "eval", batch_size=2)
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(model_directory)
    found = evaluate(model_directory, tree / "eval", batch_size=2)
    assert found.domains["a"].loss == pytest.approx(
        plain_loop(model_directory, tree, "a")[0], abs=1e-6
    )


def test_other_data_in_the_same_place_start_over(model_directory, tree, cache, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(model_directory, tree / "eval", batch_size=2)
    index = tree / "eval" / "b" / "index.json"
    index.write_text(index.read_text() + "\n")
    seen = kill_after(monkeypatch, 100)
    evaluate(model_directory, tree / "eval", batch_size=2)
    assert sum(seen) == sum(ROWS.values())


def test_no_place_for_partial_results_is_no_error(model_directory, tree, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    evaluate(model_directory, tree / "eval", partial=tmp_path / "file")
    assert "partial results are not kept" in caplog.text


@pytest.mark.world_size(2)
def test_two_processes_give_the_number_of_one(model_directory, tree, tmp_path):
    one = evaluate(model_directory, tree / "eval", batch_size=2)
    composer = Path(sys.executable).with_name("composer")
    out = tmp_path / "two.json"
    command = [composer, "-n", "2", "-m", "llmshearing.cli", "evaluate", model_directory]
    command += ["--data", tree / "eval", "--batch-size", "2", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == one.as_dict()
    assert done.stdout.count("domain  ") == 1


def test_remaining_cuts_around_what_is_known():
    known = [Piece("a", 4, 3, 1.0, 5), Piece("b", 0, 5, 1.0, 5)]
    todo = remaining({"a": 12, "b": 5, "c": 1}, known, 3)
    assert [(p.domain, p.first, p.rows) for p in todo] == [
        ("a", 0, 3),
        ("a", 3, 1),
        ("a", 7, 3),
        ("a", 10, 2),
        ("c", 0, 1),
    ]


def test_pieces_noted_twice_count_once():
    pieces = [Piece("a", 2, 2), Piece("a", 0, 2), Piece("a", 1, 2), Piece("a", 0, 2)]
    assert without_overlap(pieces) == [Piece("a", 0, 2), Piece("a", 2, 2)]
