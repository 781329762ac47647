"""Token ids are the reference's, on every kind of text."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from corpus import text, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.preparation import encoders

HARD = [
    "", " leads with a space", "  two", "<s>", "</s> after", "a<s>b</s><unk>", "<0x0A>",
    "\n", "\ttab", "▁ literal", "a▁▁b ▁", "x\x00y", "😀\u200d🔥", "e\u0301", "\ufeffbom",
    "a" * 5000, " " * 3000, "漢字" * 500, "\r\n" * 99, "ends with space ",
]  # fmt: skip


def pieces(encoder, texts):
    flat, lengths = encoder.encode([one.encode() for one in texts], encoders.NO_MARKS)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


def test_ids_are_sentencepieces_own_on_hard_texts(model_file):
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    facts = encoders.inspect(model_file)
    fast = encoders.fastest(facts)
    assert isinstance(fast, encoders.FastEncoder)
    for encoder in (fast, encoders.reference(facts)):
        assert pieces(encoder, HARD) == [model.encode(one) for one in HARD]


@pytest.fixture(scope="module")
def both(model_file):
    facts = encoders.inspect(model_file)
    return encoders.fastest(facts), encoders.reference(facts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1))
def test_ids_are_sentencepieces_own_on_any_text(both, texts):
    fast, reference = both
    assert pieces(fast, texts) == pieces(reference, texts)


@pytest.mark.parametrize("path", ["models/tiny-llama", "tokenizers/llama2"])
def test_ids_are_sentencepieces_own_on_every_document(shared, path):
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


def test_marks_of_control_in_a_text_are_text(json_folder):
    fast = encoders.fastest(encoders.inspect(json_folder))
    control = {0, 1, 2, 3}
    for ids in pieces(fast, ["<|end|>", "a <|user|> b", "plain"]):
        assert not control & set(ids)


def test_a_directory_with_a_model_is_read_by_its_model(model_file, json_folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_file.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    facts = encoders.inspect(tmp_path)
    assert facts.kind == "sentencepiece"
    assert facts.fingerprint == encoders.inspect(model_file).fingerprint


def test_a_directory_without_one_is_read_by_its_json(json_folder):
    facts = encoders.inspect(json_folder)
    assert (facts.kind, facts.bos, facts.eos) == ("huggingface", 0, 1)
    texts = [text(i, 50) for i in range(20)] + ["", " x", "\n\n"]
    assert pieces(encoders.fastest(facts), texts) == pieces(encoders.reference(facts), texts)


def go_wrong(monkeypatch, wrong):
    """Put `wrong(text, ids)` in the place of the fast encoder's ids."""
    begin_anew = encoders.FastEncoder._begin_anew

    def wrongly(self):
        begin_anew(self)
        right = self._quick
        self._quick = lambda one: wrong(one, right(one))

    monkeypatch.setattr(encoders.FastEncoder, "_begin_anew", wrongly)


def test_a_fast_encoder_that_is_wrong_is_not_used(model_file, monkeypatch):
    go_wrong(monkeypatch, lambda one, ids: ids + 1 if "\r\n" in one else ids)
    choose = encoders.fastest.__wrapped__  # not what was chosen before
    assert isinstance(choose(encoders.inspect(model_file)), encoders.SentencePieceEncoder)


def test_a_fast_encoder_that_goes_wrong_later_is_noticed(model_file, monkeypatch):
    go_wrong(monkeypatch, lambda one, ids: ids if one in encoders.PROBES else ids + 1)
    fast = encoders.fastest.__wrapped__(encoders.inspect(model_file))
    plain = text(1, 20)
    first = encoders.AUDIT_EVERY - len(encoders.PROBES)
    fast.encode([plain] * first, encoders.NO_MARKS)
    with pytest.raises(RuntimeError, match="not the reference's"):
        fast.encode([plain], encoders.NO_MARKS)


def test_long_documents_are_compared_in_part(model_file, monkeypatch):
    monkeypatch.setattr(encoders, "AUDIT_CHARACTERS", 500)
    go_wrong(monkeypatch, lambda one, ids: ids + 1 if len(one) == 500 else ids)
    fast = encoders.FastEncoder(facts := encoders.inspect(model_file), encoders.reference(facts))
    with pytest.raises(RuntimeError, match="not the reference's"):
        fast.encode([text(1, 2000)], encoders.NO_MARKS)


def test_texts_with_marks_are_kept_from_the_fast_encoder(model_file):
    """Without that rule the ids would be wrong, so that the rule is not idle."""
    facts = encoders.inspect(model_file)
    slow = encoders.reference(facts)
    careless = encoders.FastEncoder(replace(facts, control=()), slow)
    with pytest.raises(RuntimeError, match="not the reference's"):
        careless.encode([b"x</s>"], encoders.NO_MARKS)


@pytest.mark.parametrize(("begin", "end"), [(1, 2), (1, None), (None, 2), (None, None)])
def test_marks_stand_around_each_text_and_are_not_taken_for_the_texts_own(model_file, begin, end):
    facts = encoders.inspect(model_file)
    fast, slow = encoders.FastEncoder(facts, encoders.reference(facts)), encoders.reference(facts)
    marks = encoders.Marks.of(begin, end)
    texts = ["one", "", "a<s>b</s>", "two 東京"]
    first, last = ([] if mark is None else [mark] for mark in (begin, end))
    wanted = [first + ids + last for ids in pieces(slow, texts)]
    for encoder in (fast, slow):
        flat, lengths = encoder.encode(list(texts), marks)
        assert flat.tolist() == [one for ids in wanted for one in ids]
        assert lengths.tolist() == list(map(len, wanted))


def test_plain_texts_never_wait_for_the_reference(model_file, monkeypatch):
    facts = encoders.inspect(model_file)
    fast = encoders.FastEncoder(facts, encoders.reference(facts))
    fast.encode(["compared"], encoders.NO_MARKS)
    monkeypatch.setattr(fast, "_slow", None)
    fast.encode([text(i, 20) for i in range(99)], encoders.Marks.of(facts.bos, facts.eos))


def test_the_fast_encoder_forgets_words_before_they_fill_the_memory(model_file, monkeypatch):
    monkeypatch.setattr(encoders, "REMEMBERED_BYTES", 20 << 20)
    monkeypatch.setattr(encoders, "FORGET_AFTER_BYTES", 1 << 20)
    facts = encoders.inspect(model_file)
    fast = encoders.FastEncoder(facts, encoders.reference(facts))
    begin = encoders._resident_bytes()
    draw = np.random.default_rng(0)
    highest = 0
    for _ in range(60):
        words = " ".join(map(str, draw.integers(0, 1 << 60, 50_000).tolist()))
        fast.encode([words], encoders.NO_MARKS)
        highest = max(highest, encoders._resident_bytes() - begin)
    assert highest < 90 << 20, "it takes over 200 MiB where it never forgets"
    assert pieces(fast, HARD) == pieces(encoders.reference(facts), HARD)


def test_normalising_tokenizers_agree_too(tmp_path):
    """A default SentencePiece model normalises and is a unigram model: the fast one must pass."""
    corpus = write_jsonl(tmp_path / "x.jsonl", [text(i, 60) for i in range(200)])
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "u"), vocab_size=300, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    facts = encoders.inspect(tmp_path / "u.model")
    texts = ["ﬁ ½ ①  x", " a  b ", *HARD[:8]]
    assert pieces(encoders.fastest(facts), texts) == pieces(encoders.reference(facts), texts)
