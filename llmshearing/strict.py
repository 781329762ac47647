"""YAML and `key=value` into dataclasses: nothing unknown, reinterpreted or of another type.

A key that is wrong is left out and reported; the rest is read, so that all errors are reported at
once. Text stays as it was written: overrides of text are taken literally, and so are the keys of
mappings (a domain may be named `no`, `2023` or `c4.en`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.errors import UserError

TEXT = "tag:yaml.org,2002:str"


class Loader(yaml.SafeLoader):
    """YAML without surprises: keys are text, and a number is decimal or it is text.

    So `012` is not 10 (octal), `1:30` is not 90 (base 60), and `2026-01-15` is not a date.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, and refuse a key that occurs twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "found a key that is no text", key.start_mark
                )
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found the key {key.value} twice", key.start_mark
                )
            seen.add(key.value)
            key.tag = TEXT
        return super().construct_mapping(node, deep)


NUMBERS = (
    ("int", r"[-+]?(0|[1-9][0-9_]*)"),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)
Loader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("bool", "null", "merge")
    ]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for kind, pattern in NUMBERS:
    tag = f"tag:yaml.org,2002:{kind}"
    Loader.add_implicit_resolver(tag, re.compile(f"({pattern})$"), list("-+.0123456789"))


def read(
    path: Path, overrides: Sequence[str], schema: Any, instead: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Read a file and merge `key=value` overrides into it.

    Args:
        path: the file.
        overrides: dotted keys; an empty mapping as value empties one of the file.
        schema: the dataclass that says which keys hold text.
        instead: pairs of keys that exclude each other: overriding one removes the other.

    Returns:
        The merged values, and an error for each override that is none.

    Raises:
        UserError: there is no such file, or it is not YAML with sections.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"found no recipe at {path}; give the path of a YAML file, e.g. in yamls/")
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(given, dict):
        some = ", ".join(list(typing.get_type_hints(schema))[:3])
        raise UserError(f"{path} holds no mapping of keys; expected some such as {some}")
    keys = {override.partition("=")[0] for override in overrides}
    for pair in instead:
        for key, other in (pair, pair[::-1]):
            section, _, name = other.rpartition(".")
            if key in keys and other not in keys and isinstance(given.get(section), dict):
                given[section].pop(name, None)
    return _merge(given, overrides, schema)


def parse(overrides: Sequence[str], schema: Any, form: str) -> tuple[dict[str, Any], list[str]]:
    """Read `key=value` alone; `form` is what the messages call that form."""
    return _merge({}, overrides, schema, form)


def fill(config: DictConfig, given: Mapping[str, Any], schema: Any, section: str = "") -> list[str]:
    """Set what is given, field by field.

    Args:
        config: the structured config of `schema`; changed.
        given: keys and values, sections as mappings.
        schema: the dataclass that says which keys there are and of which type.
        section: the dotted key of this mapping, for the messages.

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
            if wrong := _wrong_type(key, types[name], value):
                errors.append(wrong)
                continue
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


def _wrong_type(key: str, kind: Any, value: Any) -> str | None:
    """The error of a number or truth value where text is due (YAML's `2026_01`, `no`), or text."""
    kind = _bare(kind)
    many = typing.get_args(kind)[-1:] == (str,)
    if kind is str or many:
        entries = list(value.values()) if isinstance(value, dict) else value
        for entry in entries if many and isinstance(entries, list) else [value]:
            if isinstance(entry, (bool, int, float)):
                return f"{key}: found {entry!r}, expected text; put the value in quotes"
    for scalar, words in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if isinstance(value, str) and scalar is kind:
            return f"{key}: found {value!r}, expected {words}"
    return None


def _bare(kind: Any) -> Any:
    """The type without its None."""
    others = [part for part in typing.get_args(kind) if part is not type(None)]
    return others[0] if len(others) == 1 and type(None) in typing.get_args(kind) else kind


def _merge(
    given: dict[str, Any], overrides: Sequence[str], schema: Any, form: str = "key=value"
) -> tuple[dict[str, Any], list[str]]:
    errors: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            errors.append(f"{key}: expected {form}")
            continue
        try:
            names, kind = _place(schema, key.split("."), text.lstrip().startswith("{"))
            _set(given, names, _value(text, kind))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            errors.append(f"{override}: not valid YAML: {str(error).splitlines()[0]}")
    try:
        merged = OmegaConf.to_container(OmegaConf.create(given), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    return typing.cast(dict[str, Any], merged), errors


def _place(kind: Any, parts: list[str], mapping: bool) -> tuple[list[str], Any]:
    """Split a dotted key along the schema.

    Args:
        kind: the type that the key leads into.
        parts: the key, split at every dot. Names in a mapping may have dots of their own.
        mapping: whether the value is a mapping, so that the key ends at a name and not at a field.

    Returns:
        The keys from section to section, and the type of the value; Any where it is unknown.
    """
    if not parts:
        return [], kind
    inner = _section(kind)
    if inner is not None:
        types = typing.get_type_hints(inner)
        names, found = _place(types.get(parts[0], Any), parts[1:], mapping)
        return [parts[0], *names], found
    if typing.get_origin(_bare(kind)) is dict:
        value = typing.get_args(_bare(kind))[1]
        inner = _section(value)
        types = typing.get_type_hints(inner) if inner else {}
        end = next((i for i in range(1, len(parts)) if parts[i] in types), len(parts))
        if end == len(parts) > 1 and (inner or value is Any) and not mapping:
            end -= 1
        names, found = _place(value, parts[end:], mapping)
        return [".".join(parts[:end]), *names], found
    return parts, Any


def _value(text: str, kind: Any) -> Any:
    """The value of an override: text as it is, anything else as YAML."""
    if _bare(kind) is str:
        return text if text or kind is str else None
    node = yaml.compose(text, Loader)
    if typing.get_args(_bare(kind))[-1:] == (str,) and isinstance(node, yaml.CollectionNode):
        for entry in node.value:
            leaf = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(leaf, yaml.ScalarNode):
                leaf.tag = TEXT
    return None if node is None else Loader("").construct_document(node)


def _set(given: dict[str, Any], names: Sequence[str], value: Any) -> None:
    *sections, last = names
    for name in sections:
        if not isinstance(given.get(name), dict):
            given[name] = {}
        given = given[name]
    if value and isinstance(value, dict) and isinstance(given.get(last), dict):
        value = OmegaConf.to_container(OmegaConf.merge(given[last], value))
    given[last] = value


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
