"""Measures how important each unit of a model is on the text of a data split."""

from pathlib import Path

from llmshearing.data.dataset import batched, read_rows, sample_rows
from llmshearing.data.domains import DomainRows
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
    domains = [DomainRows(name, info.path) for name, info in tree.split(folder.name).items()]
    chosen = sample_rows(domains, rows)
    device = own_device()
    model = load_model(source).to(device)  # pyright: ignore[reportArgumentType]
    with Progress("importance", len(chosen), "rows") as progress:
        tokens = (
            read_rows(domains, some, tree.sequence_length, tree.vocabulary)[0].to(device)
            for some in batched(chosen, batch_size)
        )
        scores = activation_importance(model, source.table, tokens, progress.advance)
    if out is not None:
        about = {"model": str(model_directory), "data": str(data), "rows": str(rows)}
        save_scores(out, scores, about)
    return scores
