"""Tokenizers are compared by the ids they give, not by the bytes of their files."""

import base64
import json
import shutil

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmshearing.data import schema, token_ids
from llmshearing.data.token_ids import ids_digest, same_tokenizer


@pytest.fixture
def tokenizer(shared, tmp_path):
    """A directory with a SentencePiece model and its conversion."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in (shared / "models/tiny-llama").glob("*token*"):
        shutil.copy(file, folder)
    return folder


def tiktoken(folder):
    lines = (b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))


def edited(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def saved_again(folder):
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()


def padded(folder):
    (folder / "tokenizer.model").unlink()
    read = PreTrainedTokenizerFast.from_pretrained(folder)
    read.add_special_tokens({"pad_token": "[PAD]"})
    read.save_pretrained(folder)


SAME = {
    "the same": lambda folder: None,
    "without the .model": lambda folder: (folder / "tokenizer.model").unlink(),
    "saved again": saved_again,
    "[PAD] added": padded,
    "tiktoken next to tokenizer.json": tiktoken,
    "written with other spaces": lambda folder: (
        (folder / "tokenizer.model").unlink(),
        edited(folder, lambda content: None),
    ),
}
OTHER = {
    "cut vocabulary": lambda content: content["model"].update(
        merges=content["model"]["merges"][9:]
    ),
    "no prefix space": lambda content: content["pre_tokenizer"].update(prepend_scheme="never"),
    "lower case": lambda content: content.update(normalizer={"type": "Lowercase"}),
    "exchanged ids": lambda content: content["model"]["vocab"].update(
        {"\u2581the": content["model"]["vocab"]["\u2581of"], "\u2581of": 300}
    ),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_gives_the_same_ids_is_the_same_tokenizer(tokenizer, shared, change):
    recorded = ids_digest(shared / "models/tiny-llama")
    change(tokenizer)
    assert same_tokenizer(tokenizer, recorded)
    old = schema.tokenizer_fingerprint(shared / "models/tiny-llama")
    assert same_tokenizer(tokenizer, old, shared / "models/tiny-llama"), "as older trees record it"


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_gives_other_ids_is_another_tokenizer(tokenizer, shared, change):
    (tokenizer / "tokenizer.model").unlink()
    edited(tokenizer, change)
    source = shared / "models/tiny-llama"
    assert not same_tokenizer(tokenizer, ids_digest(source), source)
    assert not same_tokenizer(tokenizer, "0" * 64)


def test_models_of_other_makers_are_other_tokenizers(tokenizer, shared):
    assert not same_tokenizer(shared / "tokenizers/llama2", ids_digest(tokenizer), tokenizer)


def test_what_cannot_be_read_is_not_the_same(tokenizer, shared):
    (tokenizer / "tokenizer.model").write_bytes(b"x")
    assert not same_tokenizer(tokenizer, ids_digest(shared / "models/tiny-llama"))
    with pytest.raises(FileNotFoundError):
        same_tokenizer(tokenizer / "empty", "0" * 64)


def test_a_tiktoken_file_is_passed_over_only_for_a_tokenizer_json(tokenizer):
    tiktoken(tokenizer)
    assert schema.tokenizer_file(tokenizer) == ("huggingface", tokenizer / "tokenizer.json")
    (tokenizer / "tokenizer.json").unlink()
    assert schema.tokenizer_file(tokenizer)[0] == "sentencepiece"


def test_names_of_special_tokens_in_a_text_are_text(tokenizer):
    for name in ("tokenizer.model", "tokenizer.json"):
        (ids,) = token_ids.encoder(tokenizer / name)(["a</s>b<s><unk>"])
        assert not {0, 1, 2} & set(ids)
