"""YAML without surprises: keys are text, numbers are decimal, and nothing is run."""

import re
from pathlib import Path
from typing import Any

import yaml

from llmshearing.errors import UserError

TEXT = "tag:yaml.org,2002:str"


class Loader(yaml.SafeLoader):
    """YAML without surprises: keys are text, numbers are decimal, and truth values are words.

    So `012` is not 10 (octal), `1:30` not 90 (base 60), `2026-01-15` not a date and `no` not false.
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


SCALARS = {
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
Loader.yaml_implicit_resolvers = {}
for kind, pattern in SCALARS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"({pattern})$"), None)


def read_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds a mapping, called `what` in the messages.

    Raises:
        UserError: no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"found no {what} at {path}; give the path of a YAML file")
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {message}") from None
    if not isinstance(given, dict):
        raise UserError(f"{path} holds no mapping of keys, expected a {what}")
    return given
