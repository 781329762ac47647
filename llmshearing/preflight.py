"""Everything that can be wrong with a run and be seen before a device is touched, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmshearing import tracking
from llmshearing.architecture.budget import Budget
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import resolve_target
from llmshearing.config import Recipe, parse_recipe
from llmshearing.data.domains import fetch_tree, run_data
from llmshearing.data.integrity import check_files
from llmshearing.data.schema import TOKENIZER_FOLDER
from llmshearing.data.settings import DataSettings
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.huggingface.source import Source, read_source
from llmshearing.mixture.references import References
from llmshearing.mixture.settings import problems, starting_weights
from llmshearing.pruning.scores import Scores, load_scores
from llmshearing.typed_yaml import error_list

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, read and checked.

    Attributes:
        source: the model directory.
        target: the shape or the number of parameters to prune to, or None.
        tree: the data tree.
        scores: importance of the source's units, where the masks start from one.
    """

    source: Source
    target: Shape | Budget | None
    tree: DataTree
    scores: Scores | None = None


def check(path: str | Path, overrides: Sequence[str] = (), ranks: int = 1) -> tuple[Recipe, Inputs]:
    """Read a recipe and what it names, and check what they say together.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        ranks: processes of the run.

    Raises:
        UserError: lists every error of both.
    """
    recipe, errors = parse_recipe(path, overrides)
    inputs = None
    if recipe is not None:
        inputs, more = examine(recipe, ranks)
        errors = errors + more
    if errors or recipe is None or inputs is None:
        raise UserError(error_list(str(path), errors))
    return recipe, inputs


def examine(recipe: Recipe, ranks: int = 1) -> tuple[Inputs | None, list[str]]:
    """Read configs and indexes (no weights, no rows) of a recipe.

    Returns:
        What the recipe names, None where it cannot be read, and every error.
    """
    errors = tracking.problems(recipe.run)
    source = _try(errors, lambda: read_source(recipe.model.path), "model.path")
    tree = _try(errors, lambda: _open_tree(recipe), "data.root")
    target = scores = None
    if recipe.target is not None and source is not None:
        target, found = resolve_target(source.table, recipe.target)
        errors += found
        scores = _try(errors, lambda: _read_scores(recipe, source), "pruning.importance")
    if tree is not None:
        errors += _data_errors(recipe, tree, ranks)
        _try(errors, lambda: _check_files(recipe.data, tree), "data.root")
    if source is not None and tree is not None:
        errors += _fit_errors(source, tree)
    if source is None or tree is None:
        return None, errors
    return Inputs(source, target, tree, scores), errors


def _read_scores(recipe: Recipe, source: Source) -> Scores | None:
    path = recipe.pruning.importance
    return None if path is None else load_scores(path, source.table)


def _data_errors(recipe: Recipe, tree: DataTree, ranks: int) -> list[str]:
    errors: list[str] = []
    if recipe.shard_ranks and ranks > 1 and ranks % recipe.shard_ranks:
        errors.append(
            f"shard_ranks: found {recipe.shard_ranks} for {ranks} ranks; expected a divisor of the "
            "ranks, so that every copy of the model has as many"
        )
    train = _try(errors, lambda: tree.split(recipe.data.split), "data.split")
    held_out = _try(errors, lambda: tree.split(recipe.data.eval_split), "data.eval_split")
    if recipe.data.global_batch % ranks:
        errors.append(
            f"data.global_batch: found {recipe.data.global_batch} rows for {ranks} ranks; "
            "expected a multiple of the ranks"
        )
    if train is None or held_out is None:
        return errors
    for name, info in train.items():
        if info.rows == 0:
            errors.append(
                f"data: domain {name} has no rows in split {recipe.data.split}; prepare more of "
                "it or leave it out"
            )
    errors += [
        f"data: domain {name} has no rows in split {recipe.data.eval_split}"
        for name in train
        if name not in held_out or held_out[name].rows == 0
    ]
    found = problems(recipe.mixture, list(train))
    if not found and not errors:
        _check_mixture_files(errors, recipe, tree)
    return errors + found


def _check_mixture_files(errors: list[str], recipe: Recipe, tree: DataTree) -> None:
    mixture, data = recipe.mixture, run_data(tree, recipe.data.split, recipe.data.eval_split)
    _try(errors, lambda: starting_weights(mixture, data.domains, data.rows), "mixture")
    if mixture.references is not None:
        path = mixture.references
        _try(errors, lambda: References.for_run(path, data), "mixture")


def _open_tree(recipe: Recipe) -> DataTree:
    data = recipe.data
    if data.remote:
        fetch_tree(data.remote, data.root)
    return DataTree.open(data.root)


def _check_files(data: DataSettings, tree: DataTree) -> None:
    by_hash = data.verify == "hash"
    check_files(tree, (data.split, data.eval_split), cached=bool(data.remote), by_hash=by_hash)


def _fit_errors(source: Source, tree: DataTree) -> list[str]:
    errors = []
    vocabulary = source.table.source.vocabulary
    if tree.vocabulary > vocabulary:
        errors.append(
            f"data.root: its ids go up to {tree.vocabulary - 1}, but the model's vocabulary has "
            f"{vocabulary} entries; prepare the data with this model's tokenizer"
        )
    try:
        same = same_tokenizer(
            source.path, tree.tokenizer["fingerprint"], tree.root / TOKENIZER_FOLDER
        )
    except FileNotFoundError:
        errors.append(
            f"model.path: found no tokenizer in {source.path}; expected tokenizer.model or "
            "tokenizer.json, which the exported model needs too"
        )
        return errors
    if not same:
        errors.append(
            f"data.root: {tree.root} was prepared with another tokenizer than the one in "
            f"{source.path}; prepare it again with that one"
        )
    longest = source.config.get("max_position_embeddings")
    if longest is not None and tree.sequence_length > longest:
        errors.append(
            f"data.root: rows of {tree.sequence_length} tokens are longer than the model's "
            f"max_position_embeddings = {longest}"
        )
    return errors


def _try(errors: list[str], read: Callable[[], T], key: str = "") -> T | None:
    """The result, or None with the user's error noted."""
    try:
        return read()
    except UserError as error:
        errors.append(f"{key}: {error}" if key else str(error))
        return None
