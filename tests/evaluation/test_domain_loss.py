"""Loss per domain, against a plain loop over the stock model."""

import json

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmshearing.data.schema import FORMAT_VERSION, columns
from llmshearing.errors import UserError
from llmshearing.evaluation import domain_loss
from llmshearing.evaluation.domain_loss import evaluate

VOCABULARY, LENGTH = 61, 16
ROWS = {"a": 7, "b": 3}


@pytest.fixture
def model_directory(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree")


def write_tree(root, chat=(), text_bytes=None):
    generator = np.random.default_rng(3)
    held = {}
    for name, rows in ROWS.items():
        is_chat = name in chat
        shape = columns(LENGTH, "uint16", chat=is_chat)
        with MDSWriter(out=str(root / "eval" / name), columns=shape) as writer:
            for _ in range(rows):
                row = {"tokens": generator.integers(0, VOCABULARY, LENGTH, dtype=np.uint16)}
                if is_chat:
                    row["loss"] = generator.integers(0, 2, LENGTH, dtype=np.uint8)
                writer.write(row)
        held[name] = {
            "rows": rows,
            "tokens": rows * LENGTH,
            "documents": rows,
            "dropped_tokens": 0,
            "fingerprint": "",
            "chat": is_chat,
        }
    manifest = {
        "format": FORMAT_VERSION,
        "sequence_length": LENGTH,
        "token_dtype": "uint16",
        "vocabulary": VOCABULARY,
        "tokenizer": {"kind": "sentencepiece", "fingerprint": "0"},
        "splits": {"eval": held},
        "domains": {name: {"tokens": 100, "bytes": text_bytes} for name in held},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


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


def test_chat_rows_count_answers_only(model_directory, tmp_path):
    tree = write_tree(tmp_path / "chat", chat=("a",))
    found = evaluate(model_directory, tree / "eval", batch_size=4)
    loss, count = plain_loop(model_directory, tree, "a")
    assert count < ROWS["a"] * (LENGTH - 1)
    assert (found.domains["a"].loss, found.domains["a"].tokens) == (
        pytest.approx(loss, abs=1e-6),
        count,
    )


def test_bits_per_byte_where_bytes_are_known(model_directory, tree, tmp_path):
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
