"""From a recipe to checked inputs: every error that shows before a device is used, at once.

What needs no torch comes first, so that a misspelled key is reported within a second. Only if that
is right are data files hashed, and weights and scores read.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llmshearing.architecture.budget import Budget
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of, read_config
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import resolve_target
from llmshearing.config import EvaluationSettings, Recipe, parse_recipe
from llmshearing.data.integrity import check_files
from llmshearing.data.teacher_cache import TeacherCache, misfits
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.huggingface import hub
from llmshearing.huggingface.teacher_directory import TeacherDirectory, find_teacher, teacher_errors
from llmshearing.mixture.mixture_file import read_mixture
from llmshearing.mixture.references import References
from llmshearing.mixture.settings import problems, starting_weights
from llmshearing.tasks.documents import local_tasks
from llmshearing.tasks.suite import read_suite
from llmshearing.typed_yaml import NOT_GIVEN, error_list

if TYPE_CHECKING:
    from llmshearing.huggingface.source import Source
    from llmshearing.pruning.scores import Scores

T = TypeVar("T")

# Keys that a run needs and a plan can do without.
OPTIONAL_IN_PLANS = ("run.directory", "data.root", "mixture.references", "mixture.start_from")


@dataclass
class Outline:
    """What a recipe names, as far as it is read without torch."""

    recipe: Recipe  # the recipe; wrong values are replaced
    errors: list[str]  # everything that is wrong
    directory: Path | None = None  # of the source
    config: dict[str, Any] | None = None  # the source's `config.json`
    table: CouplingTable | None = None  # the source's coupling table
    # the shape or the number of parameters to prune to, or None
    target: Shape | Budget | None = None
    # whose distributions are learned; None without distillation
    teacher: TeacherDirectory | None = None
    cache: TeacherCache | None = None  # of its distributions, in place of it
    tree: DataTree | None = None  # the data tree; None in a plan without one
    # of the domains at the start, in the run's order; empty if they are not known
    weights: dict[str, float] = field(default_factory=dict)
    references: np.ndarray | None = None  # the loss to reach in each domain; None without a file
    # what was assumed or could not be checked, one sentence each
    notes: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[], T], key: str) -> T | None:
        """The result, or None with the user's error noted."""
        try:
            return read()
        except UserError as error:
            self.errors.append(f"{key}: {error}")
            return None


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked."""

    source: "Source"  # the model directory
    target: Shape | Budget | None  # the shape or the number of parameters to prune to, or None
    teacher: "Source | None"  # whose distributions are learned; None without one in memory
    cache: TeacherCache | None  # of a teacher's distributions, in place of it
    tree: DataTree  # the data tree
    weights: np.ndarray  # of the domains at the start, in the run's order
    references: np.ndarray | None  # losses to reach [k]; None without a file
    scores: "Scores | None"  # importance of the source's units, if the masks start from one
    notes: list[str]  # what could not be checked, one sentence each


def resolve(
    path: str | Path, overrides: Sequence[str] = (), ranks: int = 1
) -> tuple[Recipe, Inputs]:
    """Turn a recipe into checked inputs of a run on `ranks`. No weights or rows are read.

    Raises:
        UserError: lists every error.
    """
    found = outline(path, overrides, ranks)
    recipe, tree = found.recipe, found.tree
    assert tree is not None
    from llmshearing.huggingface.source import check_attention

    data, scores = recipe.data, None
    splits, by_hash = (data.split, data.eval_split), data.verify == "hash"
    found.attempt(
        lambda: check_files(tree, splits, cached=bool(data.remote), by_hash=by_hash), "data.root"
    )
    if (cache := found.cache) is not None:
        found.attempt(lambda: cache.check_files(by_hash=by_hash), "distillation.cache")
    directory = found.directory
    assert directory is not None
    stored, attention = recipe.model.initialize == "pretrained", recipe.model.attention
    source = _read_model(found, directory, "model.path", stored=stored)
    if source is not None:
        if not found.errors:
            note = found.attempt(lambda: check_attention(source, attention), "model.attention")
            found.notes += filter(None, [note])
        longest = source.config.get("max_position_embeddings")
        if longest is not None and tree.sequence_length > longest:
            found.errors.append(
                f"data.root: found rows of {tree.sequence_length} tokens, expected at most the "
                f"model's max_position_embeddings = {longest}"
            )
        if recipe.prunes and (file := recipe.pruning.importance) is not None:
            from llmshearing.pruning.scores import load_scores

            scores = found.attempt(lambda: load_scores(file, source.table), "pruning.importance")
    teacher = None
    if (teaching := found.teacher) is not None:
        teacher = _read_model(found, teaching.path, "distillation.teacher")
    if source is None or found.errors:
        raise UserError(error_list(str(path), found.errors))
    weights = np.array(list(found.weights.values()))
    inputs = Inputs(
        source,
        found.target,
        teacher,
        cache,
        tree,
        weights,
        found.references,
        scores,
        found.notes,
    )
    return recipe, inputs


def _read_model(
    found: Outline, directory: Path, key: str, *, stored: bool = True
) -> "Source | None":
    """Read a model's config, and check its weights by their headers if any are stored."""
    from llmshearing.huggingface.source import check_source, read_source
    from llmshearing.huggingface.weight_files import are_still_on_the_hub

    source = found.attempt(lambda: read_source(directory), key)
    if source is None:
        return None
    if stored and are_still_on_the_hub(directory):
        found.notes.append(f"{key}: the weights are not downloaded yet, so nothing checks them")
        stored = False
    found.attempt(lambda: check_source(source, weights=stored), key)
    return source


def outline(
    path: str | Path, overrides: Sequence[str] = (), ranks: int = 1, *, planned: bool = False
) -> Outline:
    """Read a recipe, and of what it names all that needs no torch.

    If `planned`, leave out what a plan can do without, and note it.

    Raises:
        UserError: lists every error.
    """
    recipe, wrong = parse_recipe(path, overrides)
    absent = [key for key in OPTIONAL_IN_PLANS if planned and NOT_GIVEN.format(key) in wrong]
    found = Outline(recipe, [])
    locate = functools.partial(_model_directory, found, planned)
    found.directory = found.attempt(lambda: locate(recipe.model.path), "model.path")
    if (directory := found.directory) is not None:
        found.config = found.attempt(lambda: read_config(directory), "model.path")
    if (config := found.config) is not None:
        found.table = found.attempt(lambda: family_of(config).table(config), "model.path")
    if found.table is not None and recipe.target is not None:
        found.target, errors = resolve_target(found.table, recipe.target)
        if recipe.pruning.method == "oneshot" and isinstance(found.target, Budget):
            errors.append(
                "target.parameters: found with pruning.method=oneshot, expected sizes; find the "
                "best shape within a budget with llmshearing search"
            )
        found.errors += errors
    if (student := found.directory) is not None:
        found.teacher = found.attempt(
            lambda: find_teacher(recipe, student, locate), "distillation.teacher"
        )
    if "data.root" in absent or (planned and not Path(recipe.data.root).exists()):
        root = recipe.data.root
        found.notes.append(
            "no data.root given" if "data.root" in absent else f"no data at {root} yet"
        )
        _planned_weights(found)
    else:
        found.tree = found.attempt(lambda: _open_tree(recipe, planned), "data.root")
        if found.tree is not None:
            _read_mixture(found, found.tree, planned)
    if not planned:
        found.errors += _rank_errors(recipe, ranks) + _tracking_errors(recipe)
        if recipe.evaluation.wanted:
            found.attempt(lambda: _check_tasks(recipe.evaluation), "evaluation")
        if found.teacher is not None and found.tree is not None:
            wrong_teacher = teacher_errors(found.teacher, found.tree)
            found.errors += [f"distillation.teacher: {error}" for error in wrong_teacher]
        _check_cache(found)
        if found.directory is not None and found.config is not None:
            _check_tokenizer(found, found.directory)
    # Nothing is reported twice: a wrong value was replaced, which may have led to another error.
    wrong_keys = {error.partition(":")[0] for error in wrong}
    errors = [error for error in wrong if error.partition(":")[0] not in absent]
    errors += [error for error in found.errors if error.partition(":")[0] not in wrong_keys]
    if errors:
        raise UserError(error_list(str(path), errors))
    return found


def _model_directory(found: Outline, planned: bool, name: str) -> Path:
    """A model's directory; a plan asks no hub for the models whose configs are shipped."""
    shipped = hub.shipped_config(name) if planned else None
    if shipped is None:
        return hub.model_directory(name)
    found.notes.append(f"the config of {name} is the one in yamls/models/{shipped.name}")
    return shipped


def _open_tree(recipe: Recipe, planned: bool) -> DataTree:
    data = recipe.data
    if planned:
        return DataTree.read(data.root)
    if data.remote:
        from llmshearing.data.domains import fetch_tree

        fetch_tree(data.remote, data.root)
    return DataTree.open(data.root)


def _planned_weights(found: Outline) -> None:
    """The weights without data, of which domains a recipe or its mixture file names."""
    settings = found.recipe.mixture
    file = settings.start_from
    if settings.weights:
        found.notes.append("shares are those of mixture.weights")
        found.errors += problems(settings, list(settings.weights))
        found.weights = dict(settings.weights)
    elif file and Path(file).is_file():
        found.notes.append(f"shares are those of {file}")
        given = found.attempt(lambda: read_mixture(file, settings.start_with), "mixture.start_from")
        found.weights = given or {}
    else:
        found.notes.append("no mixture.weights or mixture.start_from: the domains are not known")


def _read_mixture(found: Outline, tree: DataTree, planned: bool) -> None:
    """Check the splits of a tree, and read the weights and losses for its domains."""
    data, settings = found.recipe.data, found.recipe.mixture
    train = found.attempt(lambda: tree.split(data.split), "data.split")
    held_out = found.attempt(lambda: tree.split(data.eval_split), "data.eval_split")
    if train is None or held_out is None:
        return
    errors = problems(settings, list(train))
    for split, infos in ((data.split, train), (data.eval_split, held_out)):
        errors += [
            f"data: domain {name} has no rows in split {split}; prepare more of it or leave it out"
            for name in train
            if not planned and (name not in infos or infos[name].rows == 0)
        ]
    found.errors += errors
    if errors:
        return
    if planned and settings.start_from and not Path(settings.start_from).is_file():
        found.notes.append(f"no mixture at {settings.start_from} yet: shares are those of the rows")
        settings = settings.model_copy(update={"start_from": None})
    rows = [info.rows for info in train.values()]
    weights = found.attempt(lambda: starting_weights(settings, list(train), rows), "mixture")
    if weights is not None:
        found.weights = dict(zip(train, weights.tolist(), strict=True))
    if settings.references and not planned:
        file, run = settings.references, tree.run_data(data.split, data.eval_split)
        losses = found.attempt(lambda: References.for_run(file, run), "mixture.references")
        if losses is not None:
            found.references = np.array([losses.losses[name] for name in train])
            if not (losses.tokenizer and losses.fingerprints):
                found.notes.append(
                    f"{file} does not say which tokenizer and rows its losses belong to, so "
                    "nothing checks that they fit this data"
                )


def _rank_errors(recipe: Recipe, ranks: int) -> list[str]:
    errors = []
    if recipe.shard_ranks and ranks > 1 and ranks % recipe.shard_ranks:
        errors.append(
            f"shard_ranks: found {recipe.shard_ranks} for {ranks} ranks; expected a divisor of the "
            "ranks, so that every copy of the model has the same number"
        )
    if recipe.data.global_batch % ranks:
        errors.append(
            f"data.global_batch: found {recipe.data.global_batch} rows for {ranks} ranks; "
            "expected a multiple of the ranks"
        )
    return errors


def _tracking_errors(recipe: Recipe) -> list[str]:
    project = recipe.run.wandb
    if project is None or importlib.util.find_spec("wandb"):
        return []
    return [
        f"run.wandb: found the project {project} but no package wandb: install it with "
        "`pip install 'llmshearing[wandb]'`, or leave run.wandb out"
    ]


def _check_tasks(settings: EvaluationSettings) -> None:
    """Refuse tasks that cannot be scored, as far as it shows without loading their data."""
    suite = read_suite(settings.suite, settings.tasks)
    if settings.documents is not None:
        local_tasks([task.task for task in suite.tasks], Path(settings.documents))
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("found no package lm_eval: `pip install 'llmshearing[eval]'`")


def _check_cache(found: Outline) -> None:
    """Check that a teacher's cache is there and fits the data, the model and the temperature."""
    settings = found.recipe.distillation
    if settings is None or (path := settings.cache) is None:
        return
    cache = found.cache = found.attempt(lambda: TeacherCache.open(path), "distillation.cache")
    if cache is None:
        return
    errors = []
    if found.tree is not None and found.weights:
        errors += misfits(cache, found.tree, found.recipe.data.split)
    if found.table is not None and found.table.source.vocabulary < cache.vocabulary:
        errors.append(
            f"found distributions over {cache.vocabulary} token ids at {path}, expected at most "
            f"the model's {found.table.source.vocabulary}: make the cache with this model"
        )
    if settings.temperature != cache.temperature:
        errors.append(
            f"found temperature {cache.temperature:g} at {path}, expected "
            f"distillation.temperature = {settings.temperature:g}: give the same one, or make the "
            "cache with it"
        )
    found.errors += [f"distillation.cache: {error}" for error in errors]


def _check_tokenizer(found: Outline, model: Path) -> None:
    """Check the model's tokenizer, and that the data was made with it and fits the model."""
    from llmshearing.huggingface import tokenizer_files

    tree = found.tree
    ids = found.attempt(lambda: tokenizer_files.read(model), "model.path")
    if found.table is None or tree is None:
        return
    vocabulary = found.table.source.vocabulary
    if tree.vocabulary > vocabulary:
        found.errors.append(
            f"data.root: the tokenizer that made the data has ids up to {tree.vocabulary - 1}, "
            f"expected ids below the model's vocabulary size {vocabulary}. The tree does not say "
            "which of them its rows contain, so added tokens count even if no text has them: "
            "remove them from the tokenizer, or prepare the data with this model's own"
        )
    if ids is not None and not tree.is_of_tokenizer(model):
        found.errors.append(
            f"data.root: {tree.root} was prepared with another tokenizer than the one in "
            f"{model}; prepare it again with that one"
        )
