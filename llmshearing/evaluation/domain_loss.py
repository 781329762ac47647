"""Held-out loss of a Hugging Face directory, domain by domain.

Shape legend: B rows, T tokens of a row, N target tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from streaming.base.format import reader_from_json
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from llmshearing.checkpoints.source import load_model, read_source
from llmshearing.data.schema import LOSS, TOKENS, tokenizer_fingerprint
from llmshearing.data.tree import DataTree, DomainInfo
from llmshearing.errors import UserError
from llmshearing.models.metrics import IGNORED

# Logits exist for this many target tokens at a time: 64 MB in float32 for 32,000 token ids.
LOGIT_CHUNK = 512


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
) -> DomainLosses:
    """Measure a model on every domain of a split.

    Args:
        model_directory: a Hugging Face directory.
        data_root_eval: a split's folder in a data tree, such as `ROOT/eval`.
        batch_size: rows of a forward pass; it does not change the result.
        device: where to compute; an accelerator where there is one.

    Raises:
        UserError: no model, no tree, no such split, or a tokenizer that is not the tree's.
    """
    model_directory, folder = Path(model_directory), Path(data_root_eval).absolute()
    if batch_size < 1:
        raise UserError(f"found batch size {batch_size}, expected at least 1")
    tree = DataTree.open(folder.parent)
    domains = tree.split(folder.name)
    source = read_source(model_directory)
    check_tokenizer(model_directory, source.config["vocab_size"], tree)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(source)
    model.to(torch.device(device)).eval()  # pyright: ignore[reportArgumentType]
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:>8} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        total = sum(info.tokens for info in domains.values())
        task = progress.add_task("evaluate", total=total, rate="-")
        found = {}
        for name, info in domains.items():
            progress.update(task, description=name)
            found[name] = _measure(
                model, info, tree, batch_size, lambda n: _tick(progress, task, n)
            )
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
        fingerprint = tokenizer_fingerprint(model_directory)
    except FileNotFoundError:
        return  # a model without a tokenizer can still be measured on ids
    if fingerprint != tree.tokenizer["fingerprint"]:
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
    model: PreTrainedModel, info: DomainInfo, tree: DataTree, batch_size: int, tick: Any
) -> DomainLoss:
    """The loss of one domain; summed in float64, so that the batch size leaves no trace."""
    device = model.device
    total, count = 0.0, 0
    for tokens, labels in batches(info, batch_size):
        losses = token_losses(model, tokens.to(device), labels.to(device))
        total += losses.double().sum().item()
        count += losses.numel()
        tick(tokens.numel())
    if not count:
        raise UserError(
            f"found no target token in {info.path}, expected some: prepare more held-out text"
        )
    loss = total / count
    if not math.isfinite(loss):
        raise UserError(f"found the loss {loss} on {info.name}: the model's weights are damaged")
    bytes_per_token = _bytes_per_token(tree, info)
    bits = None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
    return DomainLoss(loss, count, info.rows, bits)


def batches(info: DomainInfo, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Read a domain's rows in order as ids and labels, int64. [B, T] each."""
    rows = _rows(info)
    while samples := list(itertools.islice(rows, batch_size)):
        tokens = torch.from_numpy(np.stack([row[TOKENS] for row in samples]).astype(np.int64))
        labels = tokens.clone()
        if info.chat:
            counts = torch.from_numpy(np.stack([row[LOSS] for row in samples]))
            labels[counts == 0] = IGNORED
        yield tokens, labels


def _rows(info: DomainInfo) -> Iterator[dict[str, np.ndarray]]:
    """Read a domain's rows in order. `streaming.LocalDataset` would leave its index file open."""
    index = json.loads((info.path / "index.json").read_text(encoding="utf-8"))
    for shard in index["shards"]:
        yield from reader_from_json(str(info.path), None, shard)


def _bytes_per_token(tree: DataTree, info: DomainInfo) -> float | None:
    """Bytes of text that a token stands for, over all of the domain that was tokenised."""
    counted = tree.manifest.get("domains", {}).get(info.name, {})
    if not counted.get("bytes") or not counted.get("tokens"):
        return None
    return counted["bytes"] / counted["tokens"]


def _tick(progress: Progress, task: Any, tokens: int) -> None:
    speed = progress.tasks[task].speed
    progress.update(task, advance=tokens, rate=f"{speed:,.0f}" if speed else "-")
