"""Mixture files: what a run used and where its weights ended, for another run to take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmshearing.errors import UserError
from llmshearing.files import write_text


def write_mixture(path: str | Path, mixture: Mapping[str, Any]) -> None:
    """Write `weights` (the last ones), `shares` (realised) and what else is told."""
    text = yaml.safe_dump(dict(mixture), sort_keys=False)
    write_text(path, f"# Take it in a recipe: mixture.start_from={Path(path).name}\n{text}")


def read_mixture(path: str | Path, what: str) -> dict[str, float]:
    """Read `weights` or `shares` of a mixture file, scaled to sum to 1.

    Raises:
        UserError: no such file, or nothing of that name in it.
    """
    content = read_yaml(path, "mixture file")
    values = content.get(what)
    if not isinstance(values, dict) or not values:
        raise UserError(f"found no `{what}` in {path}, expected a number for each domain under it")
    try:
        numbers = {str(name): float(value) for name, value in values.items()}
    except (TypeError, ValueError):
        raise UserError(f"found {values} in {path}, expected a number for each domain") from None
    total = sum(numbers.values())
    if abs(total - 1) < 1e-3:  # a file's decimals are rounded
        numbers = {name: value / total for name, value in numbers.items()}
    return numbers


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds keys.

    Raises:
        UserError: no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"found no {what} at {path}: give the path of one")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"found {type(content).__name__} in {path}, expected a {what} with keys")
    return content
