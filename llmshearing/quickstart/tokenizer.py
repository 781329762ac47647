"""A SentencePiece tokenizer of LLaMA's kind, trained on the text at hand."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizerFast

from llmshearing.files import new_directory

VOCABULARY = 2048
CHARACTERS = 2_000_000
LONGEST_LINE = 2_000


def train(
    domains: Iterable[list[str]], out: Path, vocabulary: int = VOCABULARY
) -> sentencepiece.SentencePieceProcessor:
    """Train and save a tokenizer that Transformers' `AutoTokenizer` loads.

    As LLaMA's: byte-pair encoding with byte fallback, single digits, no normalisation.

    Args:
        domains: documents per domain; each domain gives as many characters.
        out: the directory to make.
        vocabulary: number of token ids.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(list(domains)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.999,
        max_sentence_length=4 * LONGEST_LINE,
        num_threads=2,
        minloglevel=2,
    )
    with new_directory(out) as directory:
        file = directory / "tokenizer.model"
        file.write_bytes(model.getvalue())
        # Without the prefix space the fast tokenizer disagrees with SentencePiece.
        fast = LlamaTokenizerFast(
            vocab_file=str(file), add_prefix_space=True, legacy=False, from_slow=True
        )
        fast.save_pretrained(directory)
    return sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))


def _lines(domains: list[list[str]]) -> Iterator[str]:
    """Lines of each domain, up to its share of the characters."""
    for documents in domains:
        left = CHARACTERS // len(domains)
        for document in documents:
            for line in document.splitlines():
                if line.strip():
                    yield line[:LONGEST_LINE]
            left -= len(document)
            if left <= 0:
                break
