"""Configs and models of Transformers, with the same names under its versions 4 and 5."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llmshearing import substrate
from llmshearing.architecture.families import family_of
from llmshearing.architecture.rope import with_newer_rope, with_older_rope
from llmshearing.errors import UserError
from llmshearing.files import write_json


def stock_config(fields: Mapping[str, Any]) -> PretrainedConfig:
    """The stock config of fields of `read_config`; a UserError if Transformers refuses them."""
    newer = transformers.__version__ >= "5" and family_of(fields).needs_newer_rope
    if newer and "rope_theta" in fields:
        fields = with_newer_rope(fields)
    try:
        return AutoConfig.for_model(**deepcopy(dict(fields)))  # Transformers 5 changes scalings
    except Exception as error:  # of any kind, from the constructors of the configs
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"Transformers {transformers.__version__} refuses the config of a "
            f"{fields['model_type']} model ({reason}); correct config.json, or use the version "
            "that wrote it"
        ) from error


def complete_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Every field of a stock config with its default, rotary settings in the older form."""
    fields = config.to_dict()
    return with_older_rope(fields, family_of(fields).rope_names)


def write_config(config: PretrainedConfig, directory: Path) -> None:
    """Write `config.json` so that Transformers 4 and 5 both read the rotary settings."""
    config.save_pretrained(directory)
    path = directory / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    family = family_of(saved)
    both = saved | with_older_rope(saved, family.rope_names)
    write_json(path, with_newer_rope(both) if family.needs_newer_rope else both)


def stock_model(
    config: PretrainedConfig, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A stock causal model with random weights, each named as in weight files."""
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=dtype, trust_remote_code=False
    )
    substrate.name_head(model, family_of({"model_type": config.model_type}).head)
    return model


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Parameters of modules made in the block are on the meta device; buffers have their values."""

    def without_data(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # leaves it as it is
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    register: Any = register_module_parameter_registration_hook  # annotated to return None
    hook = register(without_data)
    try:
        yield
    finally:
        hook.remove()
