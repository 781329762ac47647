"""Reading a Hugging Face directory: config, coupling table, weights, tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.family import Family
from llmshearing.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Source:
    """A Hugging Face directory that the code can prune or train.

    Attributes:
        path: the directory.
        config: its config with every default filled in.
        family: its model family.
        table: its coupling table.
    """

    path: Path
    config: dict[str, Any]
    family: Family
    table: CouplingTable


def read_source(path: str | Path) -> Source:
    """Read and check a directory's config; no weights are touched.

    Raises:
        UserError: no directory or config, an unknown family, or a field that the family refuses.
    """
    path = Path(path)
    file = path / "config.json"
    if not file.is_file():
        raise UserError(
            f"found no config.json in {path}; expected a Hugging Face model directory "
            "(config.json, safetensors, tokenizer files)"
        )
    stored = json.loads(file.read_text(encoding="utf-8"))
    family = family_of(stored)
    family.check_fields(stored)
    config = AutoConfig.from_pretrained(path).to_dict()
    return Source(path, config, family, family.table(config))


def load_model(source: Source, *, attention: str = "sdpa", random: bool = False) -> PreTrainedModel:
    """The stock model in float32, every weight found and none left over.

    Args:
        source: the directory.
        attention: Transformers' `attn_implementation`.
        random: draw the weights from torch's generator instead of reading them.

    Raises:
        UserError: weights are missing, unexpected, of another size, or there are none.
    """
    if random:
        config = AutoConfig.from_pretrained(source.path)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return model.float()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            local_files_only=True,
        )
        model, report = loaded
    except OSError as error:
        raise UserError(f"cannot read weights from {source.path}: {error}") from error
    except RuntimeError as error:
        raise UserError(f"the weights in {source.path} do not fit its config: {error}") from error
    problems = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if problems:
        raise UserError(
            f"the weights in {source.path} do not fit its config: {problems}; "
            "expected exactly the parameters of the stock model"
        )
    return model


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files in a directory, in a fixed order."""
    return [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
