"""A small random model and a hand-made tree."""

import json

import numpy as np
import pytest
import torch
from mds_trees import fingerprint_of
from streaming import MDSWriter
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.data.schema import FORMAT_VERSION, columns

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
def tree(write_tree, tmp_path):
    return write_tree(tmp_path / "tree")


@pytest.fixture
def write_tree():
    return _write_tree


def _write_tree(root, chat=(), text_bytes=None):
    generator = np.random.default_rng(3)
    held = {}
    for name, rows in ROWS.items():
        is_chat = name in chat
        shape = columns(LENGTH, "uint16", chat=is_chat)
        with MDSWriter(out=str(root / "eval" / name), columns=shape, hashes=["sha256"]) as writer:
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
            "fingerprint": fingerprint_of(root / "eval" / name),
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
