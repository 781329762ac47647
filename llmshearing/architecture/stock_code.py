"""Which config fields the installed Transformers' code of a model family reads.

Its source is parsed, not run, so this takes no import of torch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Code that every family's forward passes through. It may read a field of any config.
SHARED = (
    "activations cache_utils configuration_utils masking_utils modeling_flash_attention_utils "
    "modeling_layers modeling_rope_utils modeling_utils integrations/flash_attention "
    "integrations/flex_attention integrations/sdpa_attention"
).split()


@cache
def names_in_stock_code(model_type: str) -> frozenset[str]:
    """Every name and text in the code of a family, so at least the fields that it reads."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None, "transformers is a requirement"
    root = Path(str(spec.origin)).parent
    own = root / "models" / model_type
    files = [*own.glob("modeling_*.py"), *own.glob("configuration_*.py")]
    files += [root / f"{name}.py" for name in SHARED]
    return frozenset(name for file in files if file.is_file() for name in _names(file))


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Constant(value=str(name)):
                yield name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
