"""Whether a checkpoint can be resumed by a run: same stage, model, target, tokenizer and data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.layout import read_manifest
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.config import leaves
from llmshearing.errors import UserError

# The checkpoint decides these; a recipe only does at the start of a run.
FROM_THE_CHECKPOINT = (
    "model.path",
    "model.initialize",
    "mixture.weights",
    "mixture.start_from",
    "mixture.start_with",
    "pruning.start",
    "pruning.init_log_alpha",
    "pruning.importance",
    "pruning.importance_spread",
)


def check_fits(checkpoint: Path, now: RunManifest) -> list[str]:
    """Compare a checkpoint's manifest with that of the run that resumes, as it starts.

    Returns:
        What differs in the recipe without keeping the run from resuming, and whether it takes
        effect.

    Raises:
        UserError: the checkpoint is not whole, or belongs to another run.
    """
    was = read_manifest(checkpoint)
    differences = was.differences(now)
    if differences:
        raise UserError(
            f"{checkpoint} belongs to another run ({'; '.join(differences)}). Give another "
            "run.directory, or the recipe and the data that wrote this checkpoint"
        )
    return _changes(was.recipe, now.recipe)


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = _values(was), _values(now)
    changes = []
    for key in sorted(before.keys() | after.keys()):
        left, right = before.get(key), after.get(key)
        if left != right:
            fixed = any(key == one or key.startswith(f"{one}.") for one in FROM_THE_CHECKPOINT)
            effect = ", without effect: the checkpoint's value is used" if fixed else ""
            changes.append(f"{key} was {left!r}, is {right!r}{effect}")
    return changes


def _values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, as JSON has them; an empty section has none."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(recipe).items()
        if not isinstance(value, Mapping)
    }
