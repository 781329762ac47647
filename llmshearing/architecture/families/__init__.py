"""Model families: each module here describes one, and nothing else in the package names it."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llmshearing.architecture.family import Family
from llmshearing.architecture.rope import with_older_rope
from llmshearing.architecture.stock_code import stock_folder
from llmshearing.architecture.unsupported import reason_against
from llmshearing.errors import UserError
from llmshearing.files import read_json


@cache
def all_families() -> dict[str, Family]:
    """All families that the installed Transformers has, by their `model_type`."""
    modules = (
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    )
    families = {module.FAMILY.model_type: module.FAMILY for module in modules}
    return {name: family for name, family in families.items() if stock_folder(name).is_dir()}


def read_config(directory: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face model directory of a known family.

    Its rotary settings are in the older form, whichever version of Transformers wrote the file.

    Raises:
        UserError: there is no such file, it is not a config, or the family refuses a field.
    """
    file = Path(directory).expanduser() / "config.json"
    if not file.is_file():
        if Path(directory, "checkpoints").is_dir():
            raise UserError(
                f"found a run, not a model, in {directory}; write its model to a directory with "
                "llmshearing export and give that"
            )
        raise UserError(
            f"found no config.json in {directory}; expected a Hugging Face model directory "
            "(config.json, safetensors, tokenizer files; a plan needs config.json alone)"
        )
    config = read_json(file)
    family = family_of(config)
    config = {**family.defaults, **with_older_rope(config, family.rope_names)}
    family.check_fields(config)
    return config


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face `config.json`.

    Raises:
        UserError: no family of that model type is known, or the installed Transformers has none.
    """
    model_type = config.get("model_type")
    families = all_families()
    if model_type in families:
        return families[model_type]
    reason = reason_against(config)
    raise UserError(
        f"found model_type {model_type!r}"
        + (f", {reason}; " if reason else ", ")
        + f"expected one of {', '.join(sorted(families))}"
        + ("" if reason else "; CONTRIBUTING.md explains how to add a family")
    )
