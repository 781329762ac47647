"""Held-out loss of a Hugging Face directory, domain by domain, by one process or several.

A batch of rows is summed by itself, and the sums are added exactly, so that the result is the same
for any number of processes, and for an evaluation that was killed and went on.

Shape legend: B rows, T tokens of a row, N target tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist, get_device
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from llmshearing.data.dataset import read_rows
from llmshearing.data.domains import DomainRows, open_domains
from llmshearing.data.integrity import check_files
from llmshearing.data.schema import TOKENIZER_FOLDER
from llmshearing.data.token_ids import same_tokenizer
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation.partial import Piece, Record, fingerprint, remaining
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.models.metrics import IGNORED

log = logging.getLogger(__name__)

# Logits exist for this many target tokens at a time: 64 MB in float32 for 32,000 token ids.
LOGIT_CHUNK = 512
SLOWEST_RANK_SECONDS = 6 * 3600  # how long a process waits for the others at the end


@dataclass(frozen=True)
class DomainLoss:
    """A model's loss on one domain.

    Attributes:
        loss: mean over target tokens, in nats.
        tokens: target tokens; the first of a row is none.
        rows: rows read.
        bits_per_byte: at the domain's bytes per token, where the tree's manifest gives them.
    """

    loss: float
    tokens: int
    rows: int
    bits_per_byte: float | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where a float cannot hold it."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class DomainLosses:
    """A model's losses.

    Attributes:
        model: the Hugging Face directory.
        data: the split's folder.
        domains: result by domain, in the tree's order.
    """

    model: Path
    data: Path
    domains: dict[str, DomainLoss]

    @property
    def mean(self) -> float:
        """Mean of the domains' losses, each counting the same."""
        return sum(found.loss for found in self.domains.values()) / len(self.domains)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": str(self.model),
            "data": str(self.data),
            "mean_loss": self.mean,
            "domains": {
                name: {
                    "loss": found.loss,
                    "perplexity": found.perplexity,
                    "bits_per_byte": found.bits_per_byte,
                    "tokens": found.tokens,
                    "rows": found.rows,
                }
                for name, found in self.domains.items()
            },
        }

    def as_table(self) -> str:
        """Lines for a terminal: one a domain, then the mean."""
        width = max(len(name) for name in ("domain", *self.domains))
        lines = [f"{'domain':<{width}}      loss  perplexity  bits/byte      tokens"]
        for name, found in self.domains.items():
            bits = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
            lines.append(
                f"{name:<{width}}  {found.loss:8.4f}  {found.perplexity:10.2f}  {bits:>9}"
                f"  {found.tokens:10,}"
            )
        total = sum(found.tokens for found in self.domains.values())
        lines.append(
            f"{'mean':<{width}}  {self.mean:8.4f}  {math.exp(min(self.mean, 700)):10.2f}"
            f"  {'':>9}  {total:10,}"
        )
        return "\n".join(lines)


def evaluate(
    model_directory: str | Path,
    data_root_eval: str | Path,
    batch_size: int = 16,
    device: str | None = None,
    partial: str | Path | None = None,
) -> DomainLosses:
    """Measure a model on every domain of a split.

    Under a launcher (`composer -n 2 -m llmshearing.cli evaluate ...`) the processes share the rows,
    and each of them gets the result.

    Args:
        model_directory: a Hugging Face directory.
        data_root_eval: a split's folder in a data tree, such as `ROOT/eval`.
        batch_size: rows of a forward pass; it does not change the result.
        device: where to compute; an accelerator where there is one.
        partial: where to keep what is measured until all is; a cache folder where not given.

    Raises:
        UserError: no model, no tree, no such split, a tokenizer that is not the tree's, a damaged
            shard, or weights that are.
    """
    model_directory, folder = Path(model_directory), Path(data_root_eval).absolute()
    if batch_size < 1:
        raise UserError(f"found batch size {batch_size}, expected at least 1")
    tree = DataTree.open(folder.parent)
    check_files(tree, [folder.name])
    domains = open_domains(tree, folder.name)
    source = read_source(model_directory)
    check_tokenizer(model_directory, source.config["vocab_size"], tree)
    rank, ranks = dist.get_global_rank(), dist.get_world_size()
    if ranks > 1 and not dist.is_initialized():
        dist.initialize_dist(get_device(), timeout=SLOWEST_RANK_SECONDS)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(source)
    model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]
    record = Record.open(fingerprint(model_directory, tree, folder.name), rank, partial)
    known = [record.collect() if rank == 0 else []]
    dist.broadcast_object_list(known, src=0)
    todo = remaining({rows.name: len(rows) for rows in domains}, known[0], batch_size)
    if known[0]:
        log.info("going on: %d rows were measured before", sum(p.rows for p in known[0]))
    measured = _measure(model, domains, tree, todo[rank::ranks], record)
    pieces = [piece for part in dist.all_gather_object(measured) for piece in part] + known[0]
    record.forget()
    found = {rows.name: _domain_loss(rows, tree, pieces) for rows in domains}
    return DomainLosses(model_directory, Path(data_root_eval), found)


def check_tokenizer(model_directory: Path, vocabulary: int, tree: DataTree) -> None:
    """See that the tree's ids mean to the model what they meant to its tokenizer.

    Raises:
        UserError: the model has fewer ids, or a tokenizer of its own that differs.
    """
    if vocabulary < tree.vocabulary:
        raise UserError(
            f"found {vocabulary} token ids in {model_directory}, expected at least the "
            f"{tree.vocabulary} of {tree.root}: prepare the data with the model's tokenizer"
        )
    try:
        same = same_tokenizer(
            model_directory, tree.tokenizer["fingerprint"], tree.root / TOKENIZER_FOLDER
        )
    except FileNotFoundError:
        return  # a model without a tokenizer can still be measured on ids
    if not same:
        raise UserError(
            f"found another tokenizer in {model_directory} than the one that made {tree.root}: "
            "prepare the data with the model's tokenizer"
        )


def token_losses(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each target token.

    The output layer is applied to a few positions at a time, so that logits never exist for more.

    Args:
        model: a stock causal language model.
        tokens: ids. [B, T].
        labels: ids, -100 where a token is no target. [B, T]; the model's shift is done here.

    Returns:
        Losses in nats, float32. [N].
    """
    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    states, targets = states[:, :-1][wanted], targets[wanted]
    head = model.get_output_embeddings()
    assert head is not None
    pieces = zip(states.split(LOGIT_CHUNK), targets.split(LOGIT_CHUNK), strict=True)
    losses = [cross_entropy(head(h).float(), t, reduction="none") for h, t in pieces]
    return torch.cat(losses) if losses else states.new_zeros(0, dtype=torch.float32)


@torch.inference_mode()
def _measure(
    model: PreTrainedModel,
    domains: Sequence[DomainRows],
    tree: DataTree,
    todo: Sequence[Piece],
    record: Record,
) -> list[Piece]:
    """Sum the losses of each batch of rows and note it at once."""
    by_name = {rows.name: rows for rows in domains}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:>8} tokens/s"),
        TimeRemainingColumn(),
    )
    done = []
    total = sum(piece.rows for piece in todo) * tree.sequence_length
    console = Console(stderr=True, quiet=dist.get_global_rank() != 0)
    with Progress(*columns, console=console, transient=True) as progress, record:
        task = progress.add_task("evaluate", total=total, rate="-")
        for piece in todo:
            progress.update(task, description=piece.domain)
            wanted = [(0, piece.first + i) for i in range(piece.rows)]
            tokens, labels = read_rows(
                [by_name[piece.domain]], wanted, tree.sequence_length, tree.vocabulary
            )
            losses = token_losses(model, tokens.to(model.device), labels.to(model.device))
            done.append(piece.measured(losses.double().sum().item(), losses.numel()))
            record.add(done[-1])
            _tick(progress, task, tokens.numel())
    return done


def _domain_loss(rows: DomainRows, tree: DataTree, pieces: Sequence[Piece]) -> DomainLoss:
    """The mean over a domain's target tokens; `fsum` rounds once, whatever the order."""
    mine = [piece for piece in pieces if piece.domain == rows.name]
    count = sum(piece.count for piece in mine)
    if not count:
        raise UserError(
            f"found no target token in {rows.local}, expected some: prepare more held-out text"
        )
    totals = [piece.total for piece in mine]
    if not all(map(math.isfinite, totals)):
        raise UserError(f"found a loss on {rows.name} that is no number: the weights are damaged")
    loss = math.fsum(totals) / count
    bytes_per_token = _bytes_per_token(tree, rows.name)
    bits = None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
    return DomainLoss(loss, count, len(rows), bits)


def _bytes_per_token(tree: DataTree, domain: str) -> float | None:
    """Bytes of text that a token stands for, over all of the domain that was tokenised."""
    counted = tree.manifest.get("domains", {}).get(domain, {})
    if not counted.get("bytes") or not counted.get("tokens"):
        return None
    return counted["bytes"] / counted["tokens"]


def _tick(progress: Progress, task: Any, tokens: int) -> None:
    speed = progress.tasks[task].speed
    progress.update(task, advance=tokens, rate=f"{speed:,.0f}" if speed else "-")
