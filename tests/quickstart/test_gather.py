"""The quickstart's tokenizer and the config of its source model."""

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from llmshearing.quickstart.gather import train_tokenizer

TEXT = [
    "def walk(tree):\n    for node in tree:\n        yield node, tree[node]\n",
    "The language reference explains what a name is, and where it is bound.",
] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    train_tokenizer([TEXT, TEXT[1:]], out, vocabulary=330)
    return out


def test_auto_tokenizer_gives_the_same_ids_as_sentencepiece(trained):
    pieces = SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    auto = AutoTokenizer.from_pretrained(trained)
    assert pieces.get_piece_size() == len(auto) == 330
    for text in (*TEXT[:2], "unseen: čeština 中文\tx == 10"):
        ids = pieces.encode(text)
        assert auto.encode(text, add_special_tokens=False) == ids
        assert pieces.decode(ids) == text
    assert (auto.bos_token_id, auto.eos_token_id) == (1, 2)
    assert auto.encode(TEXT[1]) == [1, *pieces.encode(TEXT[1])]


def test_the_same_text_gives_the_same_tokenizer(trained, tmp_path):
    train_tokenizer([TEXT, TEXT[1:]], tmp_path, vocabulary=330)
    first, again = trained / "tokenizer.model", tmp_path / "tokenizer.model"
    assert first.read_bytes() == again.read_bytes()
