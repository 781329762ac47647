"""Prepared bytes stay what they were: fingerprints of a small tree, recorded once."""

import json

import pytest
import tokenizers
from corpus import prepare

from llmshearing.data.tree import DataTree

CHANGES = {
    "shares": {},
    "budgets": {
        "splits": {
            "eval": {"tokens_per_domain": 2000},
            "prune": {"tokens": 9000},
            "continue": {"share": 1},
        },
        "domains": {"web": {"weight": 2}, "code": {"weight": 1}},
    },
    "held-out files": {"domains": {"web": {"eval_files": "web/deep"}, "code": {}}},
}
# A change here means that users who prepare the same text again get other rows.
FINGERPRINTS = {
    "shares": {
        "eval/web": "b8538f1370e176a4",
        "eval/code": "7a773b0bc8476eda",
        "prune/web": "cf6bd93b5d7550bb",
        "prune/code": "0f05f14639cfc6cc",
        "continue/web": "c66c490bf263b83d",
        "continue/code": "30740cd971378125",
    },
    "budgets": {
        "eval/web": "0213bed2e1d19b0f",
        "eval/code": "8d438514a623a34e",
        "prune/web": "51a72204f43dcbef",
        "prune/code": "6197c3f06837b638",
        "continue/web": "29f37a81eab8ad94",
        "continue/code": "3c342cc5d81eef00",
    },
    "held-out files": {
        "eval/web": "e574357118dc3c61",
        "eval/code": "7a773b0bc8476eda",
        "prune/web": "7b2db4876aa307bf",
        "prune/code": "0f05f14639cfc6cc",
        "continue/web": "96237529b0c9db00",
        "continue/code": "30740cd971378125",
    },
}


@pytest.fixture
def letters(tmp_path):
    """A tokenizer that needs no training: bytes, and two marks."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder = tmp_path / "letters"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    return folder


@pytest.mark.parametrize("kind", CHANGES)
def test_prepared_bytes_are_those_of_the_record(config, letters, tmp_path, kind):
    settings = {**json.loads(config.read_text()), "tokenizer": str(letters), **CHANGES[kind]}
    config.write_text(json.dumps(settings))
    assert prepare(config) == 0
    tree = DataTree.open(tmp_path / "tree")
    found = {
        f"{split}/{name}": info.fingerprint[:16]
        for split, domains in tree.splits.items()
        for name, info in domains.items()
    }
    assert found == FINGERPRINTS[kind]
