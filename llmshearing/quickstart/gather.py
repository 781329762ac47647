"""Gathers text, trains a tokenizer on it and writes the config of the source model."""

import argparse
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sentencepiece import SentencePieceTrainer
from transformers import LlamaConfig, LlamaTokenizerFast

from llmshearing.errors import exits_on_user_error
from llmshearing.quickstart import corpus

TOKENIZER_CHARACTERS, LONGEST_LINE = 2_000_000, 2_000
SOURCE = LlamaConfig(  # twice the target of yamls/quickstart/prune.yaml in every axis but layers
    architectures=["LlamaForCausalLM"],
    vocab_size=2048,
    max_position_embeddings=256,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
)


@exits_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Write `OUT/text` and `OUT/source-config`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=3_000_000, help="of each domain")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    domains = corpus.collect(options.characters)
    corpus.write(domains, options.out / "text")
    train_tokenizer(list(domains.values()), options.out / "source-config")
    SOURCE.save_pretrained(options.out / "source-config")


def train_tokenizer(
    domains: Sequence[Sequence[str]], out: Path, vocabulary: int = SOURCE.vocab_size
) -> None:
    """Train a tokenizer and save it so that Transformers' `AutoTokenizer` loads it.

    Like LLaMA's it has byte-pair encoding with byte fallback, single digits and no normalisation.
    Each domain gives the same number of characters.
    """
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=_lines(domains),
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
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model.getvalue())
    # Without the prefix space the fast tokenizer disagrees with SentencePiece.
    tokenizer = LlamaTokenizerFast.from_pretrained(
        out, add_prefix_space=True, legacy=False, add_bos_token=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(out)


def _lines(domains: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of each domain, up to its share of the characters."""
    for documents in domains:
        left = TOKENIZER_CHARACTERS // len(domains)
        for document in documents:
            yield from (line[:LONGEST_LINE] for line in document.splitlines() if line.strip())
            left -= len(document)
            if left <= 0:
                break


if __name__ == "__main__":
    sys.exit(main())
