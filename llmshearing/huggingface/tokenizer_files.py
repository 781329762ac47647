"""The tokenizer of a Hugging Face directory: its files, and whether it fits a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from llmshearing.data.schema import tokenizer_file
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.errors import UserError
from llmshearing.files import write_json

FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
CONFIG = "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"


def copy(source: Path, directory: Path) -> None:
    """Copy a directory's tokenizer, chat templates and generation settings.

    `tokenizer_config.json` is changed where Transformers 4 could not load it, or would look for
    code that is not copied: `auto_map` is dropped, and what Transformers 5 calls TokenizersBackend
    and lists as `extra_special_tokens` gets the names that both know.
    """
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    for template in sorted((source / TEMPLATES).glob("*.jinja")):
        (directory / TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(template, directory / TEMPLATES / template.name)
    if not (directory / CONFIG).is_file():
        return
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    changed = {key: value for key, value in config.items() if key != "auto_map"}
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed != config:
        write_json(directory / CONFIG, changed)


def vocabulary(path: Path) -> int:
    """The number of ids of the tokenizer in a directory; every id is below it.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    try:
        kind, file = tokenizer_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"found no tokenizer in {path}; expected tokenizer.model or tokenizer.json in the "
            "directory that the run started from. If it has moved, give it with --tokenizer DIR"
        ) from error
    try:
        if kind == "sentencepiece":
            return SentencePieceProcessor(model_file=str(file)).get_piece_size()
        return max(Tokenizer.from_file(str(file)).get_vocab().values()) + 1
    except Exception as error:  # both libraries raise any kind of error
        raise UserError(f"{file} is not a tokenizer ({error}); restore the right file") from error


def check(path: Path, size: int, fingerprint: str | None) -> None:
    """Check that the tokenizer in a directory is the one that a model was trained with.

    Args:
        path: the directory.
        size: of the model's vocabulary.
        fingerprint: of the tokenizer that made the run's data, if it is known.

    Raises:
        UserError: it gives more ids than the model has, or is another one.
    """
    ids = vocabulary(path)
    if ids > size:
        raise UserError(
            f"the tokenizer in {path} gives {ids} ids, but the model's vocabulary has {size}; "
            "put the model's own tokenizer there, or give it with --tokenizer DIR"
        )
    if fingerprint is not None and not same_tokenizer(path, fingerprint):
        raise UserError(
            f"the tokenizer in {path} is not the one that made the run's data; "
            "restore that one, or give it with --tokenizer DIR"
        )
