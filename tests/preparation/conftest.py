"""A tokenizer and a recipe."""

import json
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

sys.path[:0] = [str(Path(__file__).parent)]

from corpus import text, write_jsonl  # noqa: E402 - found by the line above


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """A SentencePiece model of LLaMA's kind: BPE, byte fallback, no normalisation."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text(i, 60).replace("\n", " ") for i in range(200)),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.999,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def json_folder(tmp_path_factory) -> Path:
    """A Hugging Face directory with a byte-level BPE and a chat template."""
    folder = tmp_path_factory.mktemp("json")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text(i, 60) for i in range(200)],
        tokenizers.trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """Two domains of small text, one with several files at two depths."""
    root = tmp_path / "source"
    write_jsonl(root / "web" / "a.jsonl", [text(i, 20 + i % 70) for i in range(60)])
    write_jsonl(root / "web" / "deep" / "b.jsonl", [text(1000 + i, 30) for i in range(50)])
    write_jsonl(root / "code" / "c.jsonl", [text(2000 + i, 10 + i) for i in range(80)])
    return root


@pytest.fixture
def config(tmp_path, source, model_file) -> Path:
    """A recipe for that text."""
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps(
            {
                "source": str(source),
                "output": str(tmp_path / "tree"),
                "tokenizer": str(model_file),
                "sequence_length": 32,
                "domains": {"web": {}, "code": {}},
                "splits": {
                    "eval": {"share": 0.1},
                    "prune": {"share": 0.3},
                    "continue": {"share": 1},
                },
                "unit_bytes": 3000,
                "shard_bytes": "6KiB",
                "processes": 1,
            }
        )
    )
    return path
