"""The command `llmshearing search`: search, then write what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmshearing.architecture.target import TargetSettings
from llmshearing.evaluation.ranks import rank_and_count
from llmshearing.search.output import write_results
from llmshearing.search.search import TRAIN_SPLIT, SearchSettings, search
from llmshearing.tables import Table


def run(
    model: str | Path, data: Path, target: TargetSettings, out: Path, settings: SearchSettings
) -> Table | None:
    """Search, and write the results to `out`; the table, on rank 0."""
    found = search(model, data, target, out, settings)
    if rank_and_count()[0] > 0:
        return None
    return write_results(found, base_recipe(found.source.path, data, out), out)


def base_recipe(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """A run from the model on the data, without a target."""
    return {
        "run": {"directory": str((out / "run").absolute()), "duration": "1000ba"},
        "model": {"path": str(model.absolute())},
        "data": {
            "root": str(data.absolute()),
            "split": TRAIN_SPLIT,
            "global_batch": 16,
            "microbatch": 4,
        },
        "optimizer": {"learning_rate": 3e-4},
    }
