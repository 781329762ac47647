"""What a run's manifest records before the run starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llmshearing.config import Recipe
from llmshearing.preflight import Inputs
from llmshearing.quantities import steps


def run_manifest(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The part of a run's manifest that does not change during the run."""
    tree = inputs.tree
    return {
        "recipe": recipe.model_dump(),
        "source": {
            "path": str(inputs.source.path.resolve()),
            "config": inputs.source.config,
            "shape": asdict(inputs.source.table.source),
        },
        "target": None,
        "data": {
            "root": str(tree.root),
            "sequence_length": tree.sequence_length,
            "tokenizer": tree.tokenizer,
            "fingerprints": {
                name: info.fingerprint for name, info in tree.split(recipe.data.split).items()
            },
            "held_out": {
                "fingerprints": {
                    name: info.fingerprint
                    for name, info in tree.split(recipe.data.eval_split).items()
                },
                "rows": recipe.data.eval_rows,
            },
        },
        "tokens": steps(recipe.run.duration) * recipe.data.global_batch * tree.sequence_length,
    }
