"""A run that begins with a one-shot cut: the source is cut, then the cut model is trained."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from composer.utils import dist

from llmshearing.checkpoints.manifest import ExportManifest
from llmshearing.config import Recipe
from llmshearing.errors import UserError
from llmshearing.evaluation.score_units import measure_importance
from llmshearing.export.oneshot import from_file, prune_oneshot
from llmshearing.huggingface.source import read_source
from llmshearing.preflight import Inputs

log = logging.getLogger(__name__)

CUT, IMPORTANCE = "cut", "importance.safetensors"


def cut_first(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """Cut the source if the recipe asks for it; the recipe and inputs of the training that is left.

    The cut model is a Hugging Face directory in the run directory. Rank 0 makes it, and a resumed
    run finds it there. Other recipes are returned as they are.

    Args:
        recipe: a checked recipe.
        inputs: what it names.

    Raises:
        UserError: the run directory has a cut model of another source or target.
    """
    if recipe.target is None or recipe.pruning.method != "oneshot":
        return recipe, inputs
    directory = Path(recipe.run.directory)
    cut = directory / CUT
    if dist.get_global_rank() == 0 and not cut.exists():
        file = recipe.pruning.importance or directory / IMPORTANCE
        if not Path(file).exists():
            log.info("measuring the importance of the units")
            measure_importance(inputs.source.path, inputs.tree.root / recipe.data.split, out=file)
        target, scorer = recipe.target, from_file(Path(file))
        made = prune_oneshot(inputs.source.path, cut, target, scorer, method="activation")
        log.info("cut %s to %s: %s parameters", inputs.source.path, made.shape, made.parameters)
    dist.barrier()
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
