"""The tokenizer of a Hugging Face directory: its files, and whether it fits a model."""

import shutil
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from llmshearing.data.schema import tokenizer_file
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.errors import UserError
from llmshearing.files import read_json, refuse_pointer, write_json

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
    config = read_json(directory / CONFIG)
    changed = {key: value for key, value in config.items() if key != "auto_map"}
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed != config:
        write_json(directory / CONFIG, changed)


def read(path: Path) -> int:
    """Read what export will copy, and return the number of the tokenizer's ids; all are below it.

    Raises:
        UserError: there is no tokenizer, or a file is a pointer or damaged.
    """
    for file in [path / name for name in FILES] + sorted((path / TEMPLATES).glob("*.jinja")):
        if not file.is_file():
            continue
        refuse_pointer(file)
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix in (".jinja", ".txt"):
            _read_text(file)
    try:
        kind, file = tokenizer_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"found no tokenizer in {path}; expected tokenizer.model or tokenizer.json, which the "
            "exported model needs too (export takes them from another directory with --tokenizer)"
        ) from error
    try:
        if kind == "sentencepiece":
            return SentencePieceProcessor(model_file=str(file)).get_piece_size()
        return max(Tokenizer.from_file(str(file)).get_vocab().values()) + 1
    except Exception as error:  # both libraries raise any kind of error
        raise UserError(f"{file} is not a tokenizer ({error}); restore the right file") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(
            f"{file} is not text in UTF-8 ({error}); copy or download it again"
        ) from error


def check(path: Path, size: int, fingerprint: str | None) -> None:
    """Check that the tokenizer in a directory is the one that a model was trained with.

    The model's vocabulary has `size` ids; `fingerprint` is of the tokenizer that made the run's
    data, if it is known.

    Raises:
        UserError: its files cannot be read, it gives more ids than the model has, or it is another
            one.
    """
    ids = read(path)
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
