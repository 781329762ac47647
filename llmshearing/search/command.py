"""The command `llmshearing search`: search, recover the best few, write what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmshearing.architecture.target import TargetSettings
from llmshearing.config import Recipe
from llmshearing.errors import UserError
from llmshearing.evaluation.ranks import rank_and_count
from llmshearing.huggingface.source import read_source
from llmshearing.ledger import Ledger, recorded
from llmshearing.quantities import steps
from llmshearing.search.output import write_results
from llmshearing.search.search import TRAIN_SPLIT, SearchSettings, search
from llmshearing.tables import Table
from llmshearing.typed_yaml import build, error_list, merge

RECOVERY = "recovery.yaml"


@dataclass(frozen=True)
class Recovery:
    """How the best candidates are trained before they are compared again."""

    duration: str  # of the longest trainings, such as `50ba`
    finalists: int = 8  # candidates to train, at least for a while


def run(
    model: str | Path,
    data: Path,
    target: TargetSettings,
    out: Path,
    settings: SearchSettings,
    recovery: Recovery | None = None,
    overrides: Sequence[str] = (),
) -> Table | None:
    """Search, and write the results to `out`.

    `recovery` trains the best candidates before they are compared again; `overrides` are for the
    recipe of these trainings and of the best shape.

    Returns:
        The table; None on other ranks than 0.

    Raises:
        UserError: as for `search`; an override is wrong, or `out` has trainings with others.
    """
    recipe = base_recipe(read_source(model).path, data, out, settings.rows, overrides)
    found, recovered = search(model, data, target, out, settings), []
    rank, ranks = rank_and_count()
    if recovery is not None:
        from llmshearing.search.recovery import halvings, recover

        file = out / RECOVERY
        text = yaml.safe_dump(recipe, sort_keys=False)
        if recorded(file, text, rank) != text:
            raise UserError(
                f"{out} has trainings with another {file.name}: give the same --recovery, or "
                "another --out"
            )
        best = [found.candidates[name] for name in found.ranking[: recovery.finalists]]
        rounds = halvings(len(best), steps(recovery.duration))
        recovered = recover(best, file, rounds, Ledger(out, rank, ranks))
    return None if rank > 0 else write_results(found, recovered, recipe, out)


def base_recipe(
    model: Path, data: Path, out: Path, eval_rows: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """A distilled run from the model on the data, without a target.

    Raises:
        UserError: lists every wrong override.
    """
    given = {
        "run": {"directory": str((out / "run").absolute()), "duration": "1000ba"},
        "model": {"path": str(model.absolute())},
        "data": {
            "root": str(data.absolute()),
            "split": TRAIN_SPLIT,
            "global_batch": 16,
            "microbatch": 4,
            "eval_rows": eval_rows,
        },
        "optimizer": {"learning_rate": 3e-4},
        "distillation": {},
    }
    recipe, errors = merge(Recipe, given, overrides)
    errors += build(Recipe, recipe)[1]
    if errors:
        raise UserError(error_list("--recovery", errors))
    return recipe
