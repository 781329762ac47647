"""YAML and `key=value` into dataclasses: nothing unknown or of another type, every error at once.

A key that is wrong is left out and reported; the rest is read, so that one look shows everything.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llmshearing.errors import UserError


def read(
    path: Path, overrides: Sequence[str], instead: Sequence[tuple[str, str]] = ()
) -> tuple[dict[Any, Any], list[str]]:
    """What a file and `key=value` overrides with dotted keys say, and what is no override.

    Args:
        path: the file.
        overrides: an empty mapping as value empties one of the file.
        instead: keys of which an override of the one takes the place of the file's other.

    Raises:
        UserError: there is no such file, or it is not YAML with sections.
    """
    if not path.is_file():
        raise UserError(f"found no recipe at {path}; give the path of a YAML file, e.g. in yamls/")
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} holds no sections; expected some such as run, model and data")
    keys = {override.partition("=")[0] for override in overrides}
    for pair in instead:
        for given, other in (pair, pair[::-1]):
            if given in keys and other not in keys and OmegaConf.select(config, other) is not None:
                section, _, name = other.rpartition(".")
                OmegaConf.select(config, section).pop(name)
    return _merge(config, overrides)


def parse(overrides: Sequence[str], form: str) -> tuple[dict[Any, Any], list[str]]:
    """What `key=value` alone say, and what is not of the form, whose name the messages give."""
    return _merge(OmegaConf.create(), overrides, form)


def fill(config: DictConfig, given: Mapping[Any, Any], schema: Any, section: str = "") -> list[str]:
    """Set what is given, field by field.

    Args:
        config: the structured config of `schema`; changed.
        given: keys and values, sections as mappings.
        schema: the dataclass that says which keys there are and of which type.
        section: where this stands in the whole, dotted, for the messages.

    Returns:
        An error for each key that is unknown or of the wrong type.
    """
    types, errors = typing.get_type_hints(schema), []
    for name, value in given.items():
        key = f"{section}.{name}" if section else str(name)
        if name not in types:
            errors.append(_unknown(key, section, str(name), list(types)))
            continue
        inner = _section(types[name])
        if inner is None:
            try:
                OmegaConf.update(config, name, value, merge=False)
            except OmegaConfBaseException as error:
                errors.append(f"{key}: {str(error).splitlines()[0]}")
        elif isinstance(value, Mapping):
            if config[name] is None:
                config[name] = OmegaConf.structured(inner)
            errors += fill(config[name], value, inner, key)
        elif value is not None:  # a section without lines
            errors.append(f"{key}: found {value!r}, expected a section")
    return errors


def _merge(
    config: Any, overrides: Sequence[str], form: str = "key=value"
) -> tuple[dict[Any, Any], list[str]]:
    errors = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            errors.append(f"{key}: expected {form}")
            continue
        try:
            if value.strip() == "{}":  # merging nothing would leave what is there
                OmegaConf.update(config, key, None)
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except (YAMLError, OmegaConfBaseException) as error:
            errors.append(f"{override}: not valid YAML: {str(error).splitlines()[0]}")
    try:
        given = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(given, dict)
    return given, errors


def _section(kind: Any) -> Any:
    """The dataclass of a section, optional or not; None for a value."""
    parts = (kind, *typing.get_args(kind)) if typing.get_origin(kind) is not dict else ()
    return next((part for part in parts if dataclasses.is_dataclass(part)), None)


def _unknown(key: str, section: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if near:
        meant = f"{section}.{near[0]}" if section else near[0]
        return f"{key}: unknown key in {section or 'the recipe'}; did you mean {meant}?"
    return f"{key}: unknown key in {section or 'the recipe'}; known: {', '.join(known)}"
