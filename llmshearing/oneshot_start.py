"""A run that begins with a one-shot cut: the source is cut, then the cut model is trained."""

import dataclasses
import logging
from pathlib import Path

from llmshearing.checkpoints.manifest import ExportManifest
from llmshearing.config import Recipe
from llmshearing.errors import UserError
from llmshearing.huggingface.source import read_source
from llmshearing.preflight import Inputs

log = logging.getLogger(__name__)

CUT, IMPORTANCE = "cut", "importance.safetensors"


def cut_first(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """Cut the source if the recipe asks for it; the recipe and inputs of the training that is left.

    The cut model is a Hugging Face directory in the run directory. Rank 0 makes it, and a resumed
    run finds it there. Other recipes are returned as they are.

    Raises:
        UserError: the run directory has a cut model of another source or target.
    """
    from llmshearing.parallelism import on_first_rank  # `validate` needs no Composer

    if recipe.target is not None and recipe.pruning.method == "oneshot":
        on_first_rank(lambda: _cut_of(recipe).exists() or _cut(recipe, inputs))
    return after_cut(recipe, inputs)


def after_cut(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """The recipe and inputs of the training of the cut model, if there is one already.

    Raises:
        UserError: the run directory has a cut model of another source or target.
    """
    cut = _cut_of(recipe)
    if recipe.target is None or recipe.pruning.method != "oneshot" or not cut.exists():
        return recipe, inputs
    made = ExportManifest.read(cut)
    wanted = (inputs.target, str(inputs.source.path.resolve()))
    if made is None or (made.shape, made.source.path) != wanted:
        raise UserError(
            f"found {cut} of another source or target than the recipe's: give another "
            "run.directory, or remove this one to start again"
        )
    model = recipe.model.model_copy(update={"path": str(cut)})
    left = recipe.model_copy(update={"model": model, "target": None})
    return left, dataclasses.replace(inputs, source=read_source(cut), target=None, scores=None)


def _cut_of(recipe: Recipe) -> Path:
    return Path(recipe.run.directory) / CUT


def _cut(recipe: Recipe, inputs: Inputs) -> None:
    from llmshearing.evaluation.score_units import measure_importance
    from llmshearing.export.oneshot import from_file, prune_oneshot

    assert recipe.target is not None
    source = inputs.source.path
    file = Path(recipe.pruning.importance or Path(recipe.run.directory) / IMPORTANCE)
    if not file.exists():
        log.info("measuring the importance of the units")
        measure_importance(source, inputs.tree.root / recipe.data.split, out=file)
    made = prune_oneshot(
        source, _cut_of(recipe), recipe.target, from_file(file), method="activation"
    )
    log.info("cut %s to %s: %s parameters", source, made.shape, f"{made.parameters:,}")
