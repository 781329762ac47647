"""Measures how important each unit of a model is on the text of a data split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from llmshearing.data.dataset import read_rows
from llmshearing.data.domains import DomainRows
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation.domain_loss import open_inputs
from llmshearing.evaluation.ranks import own_device
from llmshearing.huggingface.source import load_model
from llmshearing.models.activation_importance import activation_importance
from llmshearing.progress import Progress
from llmshearing.pruning.scores import Scores, save_scores


def measure_importance(
    model_directory: str | Path,
    data: str | Path,
    *,
    rows: int = 512,
    batch_size: int = 8,
    out: str | Path | None = None,
) -> Scores:
    """Score every unit of a model by forward passes over rows of a split.

    Takes the first rows of each domain, in proportion to the domains' numbers of rows.

    Args:
        model_directory: a directory, or `org/name[@revision]` of the hub.
        data: a split's folder in a data tree, such as `ROOT/prune`.
        rows: rows to read; 512 to 1,024 are enough (Minitron, section 4).
        batch_size: rows of a forward pass; it does not change the scores beyond rounding.
        out: file to write the scores to. One file serves several targets.

    Raises:
        UserError: no model, no tree, no such split, or a tokenizer that is not the tree's.
    """
    if rows < 1 or batch_size < 1:
        raise UserError(f"found {rows} rows in batches of {batch_size}, expected at least 1 each")
    folder = Path(data).absolute()
    tree, source = open_inputs(model_directory, folder)
    chosen = shares({n: info.rows for n, info in tree.split(folder.name).items()}, rows)
    device = own_device()
    model = load_model(source).to(device)  # pyright: ignore[reportArgumentType]
    with Progress("importance", sum(chosen.values()), "rows") as progress:
        batches = _batches(tree, folder.name, chosen, batch_size)
        tokens = (batch.to(device) for batch in batches)
        scores = activation_importance(model, source.table, tokens, progress.advance)
    if out is not None:
        about = {"model": str(model_directory), "data": str(data), "rows": str(rows)}
        save_scores(out, scores, about)
    return scores


def shares(available: dict[str, int], rows: int) -> dict[str, int]:
    """Rows to take from each domain: in proportion to its rows, at least one.

    Args:
        available: rows of each domain.
        rows: rows to take in all. If there are fewer, all are taken.
    """
    total = sum(available.values())
    part = min(1.0, rows / max(1, total))
    return {name: min(have, max(1, round(have * part))) for name, have in available.items()}


def _batches(
    tree: DataTree, split: str, chosen: dict[str, int], batch_size: int
) -> Iterator[Tensor]:
    """Token ids, int64. [B, T] each."""
    for name, info in tree.split(split).items():
        domain = DomainRows(name, info.path)
        for first in range(0, chosen[name], batch_size):
            wanted = [(0, n) for n in range(first, min(first + batch_size, chosen[name]))]
            yield read_rows([domain], wanted, tree.sequence_length, tree.vocabulary)[0]
