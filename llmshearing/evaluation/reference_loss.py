"""A model's own held-out losses as reference losses, the paper's "source reference"."""

from __future__ import annotations

from pathlib import Path

from llmshearing.data.tree import DataTree
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.mixture.references import References


def measure_references(model: str | Path, data: str | Path, batch_size: int = 16) -> References:
    """Measure a model on every domain of a split, and record what the losses belong to.

    Raises:
        UserError: no model, no tree, no such split, or a tokenizer that is not the tree's.
    """
    found = evaluate(model, data, batch_size=batch_size)
    folder = Path(data).absolute()
    tree = DataTree.open(folder.parent)
    return References(
        losses={name: domain.loss for name, domain in found.domains.items()},
        source=f"measured on {Path(model).name}",
        tokenizer=tree.tokenizer["fingerprint"],
        sequence_length=tree.sequence_length,
        fingerprints={name: info.fingerprint for name, info in tree.split(folder.name).items()},
    )
