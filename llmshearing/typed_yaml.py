"""YAML files and `key=value` overrides as pydantic models, with every error in one message.

Text stays as it was written: overrides of text are taken literally, keys of mappings are text (a
domain may be named `no`, `2023` or `c4.en`), numbers are decimal, and nothing is converted from one
type to another. Values may refer to other keys as in OmegaConf, `${run.directory}`.
"""

import copy
import difflib
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from llmshearing.errors import UserError
from llmshearing.yaml_files import TEXT, Loader, read_yaml

NOT_GIVEN = "{}: not given; expected a value"
# What was expected, by pydantic's type of error.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


class Section(BaseModel):
    """A mapping of a recipe: its fields with their types, defaults, rules and descriptions."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _without_lines(cls, given: Any) -> Any:
        return {} if given is None else given

    def rules(self) -> list[str]:
        """Errors of fields that do not fit each other, asked where each is right by itself."""
        return []

    def to_yaml(self) -> str:
        """The values as YAML, as they stand in the log, the run directory and the manifest."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


S = TypeVar("S", bound=Section)
PathText = Annotated[str, AfterValidator(os.path.expanduser)]


def load(model: type[S], path: str | Path, overrides: Sequence[str] = (), **options: Any) -> S:
    """Read a YAML file with overrides (`options` as of `read`); a UserError lists every error."""
    given, errors = read(model, path, overrides, **options)
    made, found = build(model, given)
    if made is None or errors or found:
        raise UserError(error_list(str(path), errors + found))
    return made


def error_list(what: str, errors: Sequence[str]) -> str:
    """One message out of all errors."""
    errors = list(dict.fromkeys(errors))
    lines = "\n".join(f"  - {error}" for error in errors)
    return f"{what} has {len(errors)} error{'s' if len(errors) > 1 else ''}:\n{lines}"


def read(
    model: type[Section],
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    what: str = "recipe",
    exclusive: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Read a file and merge `key=value` overrides into it.

    Args:
        model: says which keys hold text, which overrides give literally.
        path: the file.
        overrides: dotted keys; an empty mapping as value empties one of the file, no value at all
            removes optional text.
        what: what the file should be, for the messages.
        exclusive: pairs of dotted keys of which a recipe has one: overriding one removes the other.

    Returns:
        The merged values, and an error for each override that is none.
    """
    given = read_yaml(path, what)
    keys = {override.partition("=")[0] for override in overrides}
    for pair in exclusive:
        for key, other in (pair, pair[::-1]):
            section, _, name = other.rpartition(".")
            if key in keys and other not in keys and isinstance(given.get(section), dict):
                given[section].pop(name, None)
    return merge(model, given, overrides)


def merge(
    model: type[Section], given: dict[str, Any], overrides: Sequence[str], form: str = "key=value"
) -> tuple[dict[str, Any], list[str]]:
    """Merge `key=value` overrides into values; `form` is what the messages call that form."""
    errors: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            errors.append(f"{key}: expected {form}")
            continue
        names, kind = _place(model, key.split("."), text.lstrip().startswith("{"))
        try:
            _set(given, names, _value(text, kind))
        except yaml.YAMLError as error:
            errors.append(f"{override}: not valid YAML: {str(error).splitlines()[0]}")
    try:
        merged = OmegaConf.to_container(OmegaConf.create(given), resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", "the recipe")
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None
    return _without_blanks(merged, errors), errors


def build(model: type[S], given: dict[str, Any]) -> tuple[S | None, list[str]]:
    """Make a model of what can be read, and name everything that cannot.

    Returns:
        The model and an error for each wrong key. A wrong value is replaced by its default, or by
        the field's example, so that what depends on the others can still be checked; without
        either there is no model.
    """
    given, errors, reported = copy.deepcopy(given), [], []
    replaceable = True
    while True:
        try:
            made = model.model_validate(given)
            return made, errors + _rule_errors(made, reported)
        except ValidationError as error:
            found = error.errors(include_url=False)
        for entry in found:
            location = [str(part) for part in entry["loc"] if part != "[key]"]
            names, owner = _field(model, location)
            key = ".".join(names)
            if not any(key == one or key.startswith(f"{one}.") for one in reported):
                reported.append(key)
                errors.append(_message(entry, ".".join(location), names, owner))
            inside: Any = given
            for name in names[:-1]:
                is_list = isinstance(inside, list)
                inside = inside[int(name)] if is_list else inside.setdefault(name, {})
            inside.pop(names[-1], None)
            info = owner.model_fields.get(names[-1])
            if info is not None and info.is_required():
                replaceable = replaceable and bool(info.examples)
                inside[names[-1]] = (info.examples or [None])[0]
        if not replaceable:
            return None, errors


def _rule_errors(section: Section, reported: Sequence[str], key: str = "") -> list[str]:
    """Errors between fields, of every section whose fields are all right."""
    errors = []
    for name, value in section:
        if isinstance(value, Section):
            errors += _rule_errors(value, reported, f"{key}{name}.")
    if errors or any(one.startswith(key) for one in reported):
        return errors
    return section.rules()


def json_schema(model: type[Section]) -> dict[str, Any]:
    """The JSON Schema of a recipe's files, with which editors complete and check keys.

    Any key may be missing or `???` in a file, since overrides can give it.
    """
    return _tidy(model.model_json_schema())


def _tidy(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_tidy(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {name: _tidy(value) for name, value in schema.items()}
    if isinstance(tidy.get("title"), str):
        del tidy["title"]
    if "properties" in tidy and "type" in tidy:  # a section, which may be without lines
        tidy.pop("required", None)
        tidy["type"] = ["object", "null"]
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    return tidy


def _field(model: type[Section], location: list[str]) -> tuple[list[str], type[Section]]:
    """The keys to the innermost field that a location leads to, and the section it is in."""
    end, owner, kind = 0, model, model
    for number, name in enumerate(location, start=1):
        if (inner := _section(kind)) is not None:
            end, owner = number, inner
            kind = inner.model_fields[name].annotation if name in inner.model_fields else None
        else:
            kind = _values(kind)
    return location[:end], owner


def _message(error: Any, key: str, names: list[str], owner: type[Section]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        section, known = ".".join(names[:-1]), list(owner.model_fields)
        near = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.4)
        meant = f"did you mean {'.'.join([*names[:-1], *near])}?"
        hint = meant if near else f"known: {', '.join(known)}"
        return f"{key}: unknown key in {section or 'the recipe'}; {hint}"
    if kind == "missing":
        return NOT_GIVEN.format(key)
    expected = error["msg"]
    if kind in EXPECTED:
        context = error.get("ctx", {}).items()
        expected = EXPECTED[kind].format(**{n: str(v).removesuffix(".0") for n, v in context})
    if kind == "string_type" and isinstance(error["input"], (bool, int, float)):
        expected += "; put the value in quotes"
    return f"{key}: found {error['input']!r}, expected {expected}"


def _bare(kind: Any) -> Any:
    """A type without its None and its annotations."""
    if typing.get_origin(kind) is Annotated:
        return _bare(typing.get_args(kind)[0])
    others = [part for part in typing.get_args(kind) if part is not NoneType]
    return _bare(others[0]) if len(others) == 1 < len(typing.get_args(kind)) else kind


def _section(kind: Any) -> type[Section] | None:
    """The model of a section, optional or not; None for a value."""
    kind = _bare(kind)
    is_class = typing.get_origin(kind) is None and isinstance(kind, type)
    return kind if is_class and issubclass(kind, Section) else None


def _values(kind: Any) -> Any:
    """The type of a list's or mapping's values; None where there is none."""
    kind = _bare(kind)
    return _bare(typing.get_args(kind)[-1]) if typing.get_origin(kind) in (list, dict) else None


def _place(kind: Any, parts: list[str], mapping: bool) -> tuple[list[str], Any]:
    """Split a dotted key, given in its parts, along the models from the type `kind` on.

    Names in a mapping may have dots of their own. If the value is a mapping, the key ends at a
    name and not at a field.

    Returns:
        The keys from section to section, and the type of the value; None where it is unknown.
    """
    if not parts:
        return [], kind
    if (inner := _section(kind)) is not None:
        info = inner.model_fields.get(parts[0])
        names, found = _place(info and info.annotation, parts[1:], mapping)
        return [parts[0], *names], found
    if typing.get_origin(_bare(kind)) is not dict:
        return parts, None
    value, own = _values(kind), _section(_values(kind)) is not None
    inside = range(1, len(parts)) if own else ()
    end = next((i for i in inside if _place(value, parts[i:], mapping)[1]), len(parts))
    if end == len(parts) > 1 and own and not mapping:
        end -= 1  # an unknown field
    names, found = _place(value, parts[end:], mapping)
    return [".".join(parts[:end]), *names], found


def _value(text: str, kind: Any) -> Any:
    """The value of an override: text as it is, anything else as YAML."""
    if _is_text(kind):
        return text if text or _bare(kind) is kind else None
    node = yaml.compose(text, Loader)
    if isinstance(node, yaml.CollectionNode) and _is_text(_values(kind)):
        for entry in node.value:
            leaf = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(leaf, yaml.ScalarNode):
                leaf.tag = TEXT
    return None if node is None else Loader("").construct_document(node)


def _is_text(kind: Any) -> bool:
    return _bare(kind) is str or typing.get_origin(_bare(kind)) is Literal


def _set(given: dict[str, Any], names: Sequence[str], value: Any) -> None:
    *sections, last = names
    for name in sections:
        if not isinstance(given.get(name), dict):
            given[name] = {}
        given = given[name]
    if value and isinstance(value, dict) and isinstance(given.get(last), dict):
        value = OmegaConf.to_container(OmegaConf.merge(given[last], value))
    given[last] = value


def _without_blanks(given: Any, errors: list[str], key: str = "") -> Any:
    """The values without those that a recipe leaves to its user, `???`, each of them an error."""
    if not isinstance(given, dict):
        return given
    kept = {}
    for name, value in given.items():
        if value == "???":
            errors.append(NOT_GIVEN.format(f"{key}{name}"))
        else:
            kept[name] = _without_blanks(value, errors, f"{key}{name}.")
    return kept
