"""Token ids are the reference's, on every kind of text."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from corpus import text, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.errors import UserError
from llmshearing.preparation import encoders

gigatoken = pytest.importorskip("gigatoken", reason="needs the extra `fast`")

HARD = [
    "", " leads with a space", "  two", "<s>", "</s> after", "a<s>b</s><unk>", "<0x0A>",
    "\n", "\ttab", "▁ literal", "a▁▁b ▁", "x\x00y", "😀\u200d🔥", "e\u0301", "\ufeffbom",
    "a" * 5000, " " * 3000, "漢字" * 500, "\r\n" * 99, "ends with space ",
]  # fmt: skip


def pieces(encoder, texts):
    flat, lengths = encoder.encode([one.encode() for one in texts])
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


def test_ids_equal_sentencepiece_on_hard_texts(model_file):
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    facts = encoders.inspect(model_file)
    fast = encoders.fastest(facts)
    assert isinstance(fast, encoders.FastEncoder)
    for encoder in (fast, encoders.ReferenceEncoder(facts)):
        assert pieces(encoder, HARD) == [model.encode(one) for one in HARD]


@pytest.fixture(scope="module")
def both(model_file):
    facts = encoders.inspect(model_file)
    return encoders.fastest(facts), encoders.ReferenceEncoder(facts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1))
def test_ids_equal_sentencepiece_on_any_text(both, texts):
    fast, reference = both
    assert pieces(fast, texts) == pieces(reference, texts)


@pytest.mark.parametrize("path", ["models/tiny-llama", "tokenizers/llama2"])
def test_ids_equal_sentencepiece_on_every_document(shared, path):
    folder = shared / path
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    fast = encoders.fastest(encoders.inspect(folder))
    assert isinstance(fast, encoders.FastEncoder)
    documents = 0
    for file in sorted(shared.glob("data/redpajama-sample/*/eval.jsonl")):
        texts = [json.loads(x)["text"] for x in file.read_text(encoding="utf-8").split("\n") if x]
        assert pieces(fast, texts) == model.encode(texts)
        documents += len(texts)
    assert documents == 482


def test_names_of_special_tokens_in_a_text_are_text(json_folder):
    fast = encoders.fastest(encoders.inspect(json_folder))
    control = {0, 1, 2, 3}
    for ids in pieces(fast, ["<|end|>", "a <|user|> b", "plain"]):
        assert not control & set(ids)


def test_tokenizer_model_takes_precedence_over_tokenizer_json(model_file, json_folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_file.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    facts = encoders.inspect(tmp_path)
    assert facts.kind == "sentencepiece"
    assert facts.fingerprint == encoders.inspect(model_file).fingerprint


def test_a_tiktoken_file_next_to_a_tokenizer_json_is_passed_over(json_folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match=r"cannot read .*tokenizer.model as a sentencepiece"):
        encoders.inspect(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    assert encoders.inspect(tmp_path).kind == "huggingface"


def test_a_directory_without_tokenizer_model_uses_tokenizer_json(json_folder):
    facts = encoders.inspect(json_folder)
    assert (facts.kind, facts.bos, facts.eos) == ("huggingface", 0, 1)
    texts = [text(i, 50) for i in range(20)] + ["", " x", "\n\n"]
    assert pieces(encoders.fastest(facts), texts) == pieces(encoders.ReferenceEncoder(facts), texts)


def go_wrong(monkeypatch, wrong):
    """Change the fast encoder's ids of the texts for which `wrong` is true."""
    right = encoders.FastEncoder._fast

    def wrongly(self, texts):
        ids, lengths = right(self, texts)
        changed = np.repeat([wrong(one.decode()) for one in texts], lengths)
        return ids + changed.astype(np.uint32), lengths

    monkeypatch.setattr(encoders.FastEncoder, "_fast", wrongly)


def test_a_fast_encoder_that_is_wrong_on_a_probe_is_not_used(model_file, monkeypatch, caplog):
    go_wrong(monkeypatch, lambda one: "\r\n\t" in one)
    choose = encoders.fastest.__wrapped__  # not what was chosen before
    facts = encoders.inspect(model_file)
    assert isinstance(choose(facts), encoders.ReferenceEncoder)
    probe = "\n\nlines\r\n\ttabs"
    (ids,) = pieces(encoders.ReferenceEncoder(facts), [probe])
    assert "encoding with SentencePiece: gigatoken and SentencePiece disagree" in caplog.text
    assert f"begins {probe!r}: from id 0 on, gigatoken gives {[i + 1 for i in ids[:5]]}" in (
        caplog.text
    )
    assert f"SentencePiece {ids[:5]}" in caplog.text


def test_without_the_extra_the_reference_encodes(model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    found = encoders.fastest.__wrapped__(encoders.inspect(model_file))
    assert isinstance(found, encoders.ReferenceEncoder)


def test_a_fast_encoder_that_goes_wrong_later_stops_the_run(model_file, monkeypatch):
    go_wrong(monkeypatch, lambda one: one not in encoders.PROBES)
    fast = encoders.fastest.__wrapped__(encoders.inspect(model_file))
    fast._encoded = 1
    plain = text(1, 20).encode()
    fast.encode([plain] * (encoders.AUDIT_EVERY - 1))
    with pytest.raises(UserError, match=r"SentencePiece disagree .* One of them has a fault"):
        fast.encode([plain])


def test_long_documents_are_compared_in_part(model_file, monkeypatch):
    monkeypatch.setattr(encoders, "AUDIT_CHARACTERS", 500)
    go_wrong(monkeypatch, lambda one: len(one) == 500)
    facts = encoders.inspect(model_file)
    fast = encoders.FastEncoder(facts, encoders.ReferenceEncoder(facts))
    with pytest.raises(UserError, match="disagree"):
        fast.encode([text(1, 2000).encode()])


def test_texts_with_special_tokens_are_kept_from_the_fast_encoder(model_file):
    """Without that rule the ids would be wrong, so that the rule is not idle."""
    facts = encoders.inspect(model_file)
    careless = encoders.FastEncoder(replace(facts, special=()), encoders.ReferenceEncoder(facts))
    with pytest.raises(UserError, match="disagree"):
        careless.encode([b"x</s>"])


@pytest.mark.parametrize("texts", [["one", "", "a<s>b</s>", "two 東京"], [""], ["", ""], ["x"]])
@pytest.mark.parametrize(("begin", "end"), [(1, 2), (1, None), (None, 2), (None, None)])
def test_marks_are_put_around_each_text(model_file, begin, end, texts):
    facts = encoders.inspect(model_file)
    slow = encoders.ReferenceEncoder(facts)
    first, last = ([] if mark is None else [mark] for mark in (begin, end))
    wanted = [first + ids + last for ids in pieces(slow, texts)]
    for encoder in (encoders.FastEncoder(facts, slow), slow):
        encoded = encoder.encode([one.encode() for one in texts])
        flat, lengths = encoders.with_marks(*encoded, (begin, end))
        assert flat.tolist() == [one for ids in wanted for one in ids]
        assert flat.dtype == np.uint32
        assert lengths.tolist() == list(map(len, wanted))


def test_plain_texts_do_not_need_the_reference(model_file, monkeypatch):
    facts = encoders.inspect(model_file)
    fast = encoders.FastEncoder(facts, encoders.ReferenceEncoder(facts))
    fast.encode([b"compared"])
    monkeypatch.setattr(fast, "_reference", None)
    fast.encode([text(i, 20).encode() for i in range(99)])


def test_normalising_tokenizers_agree_too(tmp_path):
    """A default SentencePiece model normalises and is a unigram model: the fast one must pass."""
    corpus = write_jsonl(tmp_path / "x.jsonl", [text(i, 60) for i in range(200)])
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "u"), vocab_size=300, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    facts = encoders.inspect(tmp_path / "u.model")
    texts = ["ﬁ ½ ①  x", " a  b ", *HARD[:8]]
    assert pieces(encoders.fastest(facts), texts) == pieces(encoders.ReferenceEncoder(facts), texts)


def facts_of(bos, eos):
    special = (("<a>", 0), ("<b>", 1), ("<|endoftext|>", 2))
    return encoders.TokenizerFacts(Path("t"), "huggingface", "", "", 9, bos, eos, special)


@pytest.mark.parametrize(
    ("bos", "eos", "chosen", "text", "chat", "note"),
    [
        (0, 1, {}, (0, 1), (0, 1), "texts begin with <a> (0) and end with <b> (1)"),
        (2, 2, {}, (None, 2), (None, 2), "begin with no token and end with <|endoftext|> (2)"),
        (
            2,
            2,
            {"eos": False},
            (2, None),
            (2, None),
            "begin with <|endoftext|> (2) and end with no token",
        ),
        (0, 1, {"bos": False}, (None, 1), (None, 1), "begin with no token and end with <b> (1)"),
        (
            0,
            1,
            {"separator": "<|endoftext|>"},
            (None, 2),
            (0, 1),
            "begin with no token and end with <|endof",
        ),
        (
            None,
            1,
            {"separator": "<a>"},
            (None, 0),
            (None, 1),
            "begin with no token and end with <a> (0)",
        ),
        (
            0,
            1,
            {"bos": False, "eos": False},
            (None, None),
            (None, None),
            "begin with no token and end with no token",
        ),
    ],
)
def test_tokens_around_documents(bos, eos, chosen, text, chat, note):
    chosen = {"bos": True, "eos": True, "separator": None, **chosen}
    marks = encoders.choose_marks(facts_of(bos, eos), **chosen)
    assert (marks.text, marks.chat) == (text, chat)
    assert note in marks.note


@pytest.mark.parametrize(
    ("bos", "separator", "message"),
    [(None, None, "no bos token"), (0, "<|endoftxt|>", "expected one such as <|endoftext|>")],
)
def test_a_token_that_the_tokenizer_lacks_is_named(bos, separator, message):
    with pytest.raises(UserError, match=re.escape(message)):
        encoders.choose_marks(facts_of(bos, 1), bos=True, eos=True, separator=separator)
