"""A tree is opened from its manifest, or refused with the reason."""

import json

import pytest

from llmshearing.data import schema
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError

HELD = {
    "rows": 3, "tokens": 24, "documents": 2, "dropped_tokens": 5, "fingerprint": "f", "chat": False,
}  # fmt: skip
MANIFEST = {
    "format": schema.FORMAT_VERSION,
    "sequence_length": 8,
    "token_dtype": "uint16",
    "vocabulary": 100,
    "tokenizer": {"kind": "sentencepiece", "fingerprint": "t"},
    "splits": {"eval": {"wiki": HELD}},
}


def put(root, manifest):
    (root / "eval" / "wiki").mkdir(parents=True)
    (root / "eval" / "wiki" / "index.json").write_text("{}")
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_a_tree_holds_what_its_manifest_records(tmp_path):
    put(tmp_path, MANIFEST)
    tree = DataTree.open(tmp_path)
    assert (tree.sequence_length, tree.token_dtype, tree.vocabulary) == (8, "uint16", 100)
    info = tree.split("eval")["wiki"]
    assert info.path == tmp_path / "eval" / "wiki"
    assert (info.rows, info.tokens, info.documents, info.dropped_tokens) == (3, 24, 2, 5)
    with pytest.raises(UserError, match="found the splits eval"):
        tree.split("prune")


def test_a_folder_without_a_finished_tree_is_refused(tmp_path):
    with pytest.raises(UserError, match="no data tree"):
        DataTree.open(tmp_path)
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(UserError, match="unfinished"):
        DataTree.open(tmp_path)


def test_missing_indexes_are_named_with_the_remedy(tmp_path):
    put(tmp_path, MANIFEST)
    (tmp_path / "eval" / "wiki" / "index.json").unlink()
    with pytest.raises(UserError, match=r"llmshearing describe"):
        DataTree.open(tmp_path)
    assert DataTree.read(tmp_path).split("eval")["wiki"].rows == 3


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**MANIFEST, "format": 99}), "another format"),
        (json.dumps({k: v for k, v in MANIFEST.items() if k != "vocabulary"}), "vocabulary"),
        (json.dumps({**MANIFEST, "splits": {"eval": {"wiki": {}}}}), "rows"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=message):
        DataTree.open(tmp_path)


def test_ids_take_16_bits_if_they_fit():
    assert schema.token_dtype(1 << 16) == "uint16"
    assert schema.token_dtype((1 << 16) + 1) == "uint32"
    assert schema.columns(8, "uint16", chat=False) == {"tokens": "ndarray:uint16:8"}
    assert schema.columns(8, "uint32", chat=True) == {
        "loss": "ndarray:uint8:8",
        "tokens": "ndarray:uint32:8",
    }


def test_a_directory_and_its_model_file_have_one_fingerprint(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"m")
    (tmp_path / "tokenizer.json").write_bytes(b"j")
    assert schema.tokenizer_file(tmp_path)[0] == "sentencepiece"
    assert schema.tokenizer_fingerprint(tmp_path) == schema.tokenizer_fingerprint(
        tmp_path / "tokenizer.model"
    )
    (tmp_path / "tokenizer.model").unlink()
    assert schema.tokenizer_file(tmp_path)[0] == "huggingface"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        schema.tokenizer_file(tmp_path)
