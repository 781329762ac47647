"""What a plan reads: the recipe, a config, and the data tree where there is one. No weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of, read_config
from llmshearing.architecture.target import resolve_target
from llmshearing.config import Recipe, parse_recipe
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.settings import problems, starting_weights
from llmshearing.planning.state import Target
from llmshearing.typed_yaml import error_list

# Keys that a run needs and a plan can do without.
NOT_NEEDED = ("run.directory", "data.root", "mixture.references", "mixture.start_from")
NOT_GIVEN = "(not given)"
USUAL_LENGTH = 4096
USUAL_HELD_OUT_ROWS = 500  # of a domain: 2M tokens (paper, appendix on data)


@dataclass(frozen=True)
class DomainData:
    """One domain.

    Attributes:
        name: the domain.
        weight: at the start.
        rows: to train on; None where the data is not there.
        held_out: rows to evaluate on.
    """

    name: str
    weight: float
    rows: int | None
    held_out: int


@dataclass(frozen=True)
class PlanInputs:
    """A recipe with what it names.

    Attributes:
        recipe: checked.
        config: of the model that is trained, complete.
        table: of the model that is trained.
        target: what to prune to, or None.
        sequence_length: tokens in a row.
        domains: of the data; empty where neither data nor weights tell them.
        tree: the data; None where there is none yet.
        notes: what was assumed, one sentence each.
    """

    recipe: Recipe
    config: dict[str, Any] = field(repr=False)
    table: CouplingTable
    target: Target
    sequence_length: int
    domains: list[DomainData]
    tree: DataTree | None
    notes: list[str]


def read_inputs(
    path: str | Path, overrides: Sequence[str] = (), sequence_length: int | None = None
) -> PlanInputs:
    """Read what a plan needs.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        sequence_length: tokens in a row, where no data tells.

    Raises:
        UserError: lists every error.
    """
    recipe, errors = _lenient_recipe(path, overrides)
    if recipe is None:
        raise UserError(error_list(str(path), errors))
    notes: list[str] = []
    table, config, target = None, {}, None
    try:
        config = read_config(recipe.model.path)
        table = family_of(config).table(config)
    except UserError as error:
        errors.append(f"model.path: {error}")
    if table is not None and recipe.target is not None:
        target, found = resolve_target(table, recipe.target)
        errors += found
    tree = None
    try:
        tree = _tree(recipe, notes)
    except UserError as error:
        errors.append(f"data.root: {error}")
    domains: list[DomainData] = []
    try:
        domains = _domains(recipe, tree, notes, errors)
    except UserError as error:
        errors.append(str(error))
    if errors or table is None:
        raise UserError(error_list(str(path), errors))
    length = _length(tree, config, sequence_length, notes)
    return PlanInputs(recipe, config, table, target, length, domains, tree, notes)


def _lenient_recipe(path: str | Path, overrides: Sequence[str]) -> tuple[Recipe | None, list[str]]:
    """The recipe, with what a plan can do without filled in."""
    given = list(overrides)
    recipe, errors = parse_recipe(path, given)
    missing = [key for key in NOT_NEEDED if any(e.startswith(f"{key}: not given") for e in errors)]
    if missing:
        recipe, errors = parse_recipe(path, [*given, *(f"{key}={NOT_GIVEN}" for key in missing)])
    return recipe, errors


def _tree(recipe: Recipe, notes: list[str]) -> DataTree | None:
    root = recipe.data.root
    if root == NOT_GIVEN:
        notes.append("no data.root given")
        return None
    if not Path(root).exists():
        notes.append(f"no data at {root} yet")
        return None
    return DataTree.read(root)


def _domains(
    recipe: Recipe, tree: DataTree | None, notes: list[str], errors: list[str]
) -> list[DomainData]:
    settings = recipe.mixture
    if tree is None:
        if settings.weights:
            notes.append("shares are those of mixture.weights")
            errors += problems(settings, list(settings.weights))
        elif settings.start_from and Path(settings.start_from).is_file():
            from llmshearing.mixture.mixture_file import read_mixture

            notes.append(f"shares are those of {settings.start_from}")
            given = read_mixture(settings.start_from, settings.start_with)
            return [DomainData(n, w, None, _held_out(recipe, None)) for n, w in given.items()]
        else:
            notes.append(
                "no mixture.weights or mixture.start_from either: the domains are not known"
            )
        held = _held_out(recipe, None)
        return [DomainData(name, w, None, held) for name, w in settings.weights.items()]
    train, held_out = tree.split(recipe.data.split), tree.split(recipe.data.eval_split)
    names = list(train)
    found = problems(settings, names)
    errors += found
    if found:
        return []
    rows = [train[name].rows for name in names]
    if settings.start_from and not Path(settings.start_from).is_file():
        notes.append(f"no mixture at {settings.start_from} yet: shares are those of the rows")
        weights = [count / max(1, sum(rows)) for count in rows]
    else:
        weights = list(starting_weights(settings, names, rows))
    return [
        DomainData(
            name, float(w), count, _held_out(recipe, held_out[name].rows if name in held_out else 0)
        )
        for name, w, count in zip(names, weights, rows, strict=True)
    ]


def _held_out(recipe: Recipe, rows: int | None) -> int:
    known = USUAL_HELD_OUT_ROWS if rows is None else rows
    return known if recipe.data.eval_rows is None else min(known, recipe.data.eval_rows)


def _length(
    tree: DataTree | None, config: dict[str, Any], given: int | None, notes: list[str]
) -> int:
    if tree is not None:
        return tree.sequence_length
    if given is not None:
        if given < 1:
            raise UserError(
                f"--sequence-length: found {given}, expected tokens of a row, e.g. 4096"
            )
        return given
    length = min(USUAL_LENGTH, config.get("max_position_embeddings") or USUAL_LENGTH)
    notes.append(f"rows of {length:,} tokens assumed; give --sequence-length for others")
    return length
