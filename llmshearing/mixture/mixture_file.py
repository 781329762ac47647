"""Mixture files: the final and realised domain weights of a run, for another run to start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmshearing.errors import UserError
from llmshearing.files import write_text
from llmshearing.yaml_files import read_yaml


def write_mixture(path: str | Path, mixture: Mapping[str, Any]) -> None:
    """Write `weights` (the last ones), `shares` (the realised ones) and what else is given."""
    text = yaml.safe_dump(dict(mixture), sort_keys=False)
    write_text(path, f"# To start from it: mixture.start_from={Path(path).name}\n{text}")


def read_mixture(path: str | Path, what: str) -> dict[str, float]:
    """Read `weights` or `shares` of a mixture file, scaled to sum to 1, or raise a UserError."""
    values = read_yaml(path, "mixture file").get(what)
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
