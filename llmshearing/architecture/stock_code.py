"""Which config fields the installed Transformers' code of a model family reads.

Its source is parsed, not run, so this takes no import of torch.
"""

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


def stock_folder(model_type: str) -> Path:
    """Where the installed Transformers has the code of a family, if it has any."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None, "transformers is a requirement"
    # The text part of a model with vision is in the folder of that model.
    return Path(str(spec.origin)).parent / "models" / model_type.removesuffix("_text")


@cache
def names_in_stock_code(model_type: str) -> frozenset[str]:
    """Every name and text in the code of a family, so at least the fields that it reads."""
    own = stock_folder(model_type)
    assert own.is_dir(), f"found no code of {model_type} models"
    root = own.parents[1]
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
