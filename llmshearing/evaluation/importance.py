"""Importance of a model's units on the text of a data split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from llmshearing.data.dataset import read_rows
from llmshearing.data.domains import DomainRows
from llmshearing.data.integrity import check_files
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation.domain_loss import check_tokenizer
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.models.activation_importance import activation_importance
from llmshearing.pruning.scores import Scores, save_scores

log = logging.getLogger(__name__)


def measure_importance(
    model_directory: str | Path,
    data: str | Path,
    *,
    rows: int = 512,
    batch_size: int = 8,
    out: str | Path | None = None,
) -> Scores:
    """Score every unit of a model by forward passes over rows of a split.

    The domains take part in proportion to their rows, from each the first ones.

    Args:
        model_directory: a Hugging Face directory.
        data: a split's folder in a data tree, such as `ROOT/prune`.
        rows: rows to read; 512 to 1,024 are enough (Minitron, section 4).
        batch_size: rows of a forward pass; it does not change the scores beyond rounding.
        out: file to write them to, for several targets.

    Raises:
        UserError: no model, no tree, no such split, or a tokenizer that is not the tree's.
    """
    if rows < 1 or batch_size < 1:
        raise UserError(f"found {rows} rows in batches of {batch_size}, expected at least 1 each")
    folder = Path(data).absolute()
    tree = DataTree.open(folder.parent)
    check_files(tree, [folder.name])
    source = read_source(model_directory)
    check_tokenizer(Path(model_directory), source.config["vocab_size"], tree)
    chosen = shares({n: info.rows for n, info in tree.split(folder.name).items()}, rows)
    model = load_model(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # pyright: ignore[reportArgumentType]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("importance", total=sum(chosen.values()))
        batches = _batches(tree, folder.name, chosen, batch_size)
        scores = activation_importance(
            model,
            source.table,
            (tokens.to(device) for tokens in batches),
            lambda done: progress.update(task, advance=done),
        )
    if out is not None:
        about = {"model": str(model_directory), "data": str(data), "rows": str(rows)}
        save_scores(out, scores, about)
    return scores


def shares(available: dict[str, int], rows: int) -> dict[str, int]:
    """How many rows each domain gives: in proportion to what it has, at least one of each.

    Args:
        available: rows per domain.
        rows: rows in all; every row where there are fewer.
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
