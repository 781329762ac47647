"""The tokenizer of a Hugging Face directory: its files, and whether it fits a model."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from llmshearing.data.schema import tokenizer_file
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.errors import UserError

FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def files(path: Path) -> list[Path]:
    """The tokenizer's files in a directory, in a fixed order."""
    return [path / name for name in FILES if (path / name).is_file()]


def vocabulary(path: Path) -> int:
    """Ids that the tokenizer in a directory can give; every id is below it.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    try:
        kind, file = tokenizer_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"found no tokenizer in {path}; expected tokenizer.model or tokenizer.json in the "
            "directory that the run started from. If it has moved, say where with --tokenizer DIR"
        ) from error
    try:
        if kind == "sentencepiece":
            return SentencePieceProcessor(model_file=str(file)).get_piece_size()
        return max(Tokenizer.from_file(str(file)).get_vocab().values()) + 1
    except Exception as error:  # both libraries raise what they like
        raise UserError(
            f"found {file}, which is no tokenizer ({error}); put the right file back"
        ) from error


def check(path: Path, size: int, fingerprint: str | None) -> None:
    """See that the tokenizer in a directory is the one that a model was trained with.

    Args:
        path: the directory.
        size: of the model's vocabulary.
        fingerprint: of the tokenizer that made the run's data, where it is known.

    Raises:
        UserError: it gives more ids than the model has, or is another one.
    """
    ids = vocabulary(path)
    if ids > size:
        raise UserError(
            f"the tokenizer in {path} gives {ids} ids, but the model's vocabulary has {size}; "
            "put the model's own tokenizer there, or say where it is with --tokenizer DIR"
        )
    if fingerprint is not None and not same_tokenizer(path, fingerprint):
        raise UserError(
            f"the tokenizer in {path} is not the one that made the run's data; "
            "put that one back, or say where it is with --tokenizer DIR"
        )
