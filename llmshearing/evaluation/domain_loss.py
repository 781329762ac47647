"""Held-out loss of a Hugging Face directory, domain by domain, by one process or several.

The losses of a batch are summed in float64, and the sums of the batches are added without rounding.
So any number of processes gives the same result to the bit.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmshearing.data.dataset import read_rows
from llmshearing.data.domains import DomainRows, open_domains
from llmshearing.data.integrity import check_files
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.evaluation.ranks import Ranks, own_device
from llmshearing.huggingface.source import Source, load_model, read_source
from llmshearing.mixture.references import References
from llmshearing.models.divergence import Distillation
from llmshearing.models.head import TokenLosses, insert_loss_head
from llmshearing.models.metrics import IGNORED, shifted
from llmshearing.models.teacher import FrozenTeacher
from llmshearing.progress import Progress
from llmshearing.tables import Table

# Logits exist for this many target tokens at a time: 64 MB in float32 for 32,000 token ids.
LOGIT_CHUNK = 512


@dataclass(frozen=True)
class DomainLoss:
    """A model's loss on one domain."""

    loss: float  # mean over target tokens, in nats
    perplexity: float  # the exponential of the loss; infinite if a float cannot hold it
    # the loss in bits per byte of text; None if the tree's manifest does not have the number of
    # bytes
    bits_per_byte: float | None
    tokens: int  # target tokens; the first token of a row is not one
    rows: int  # rows read
    # mean KL(teacher || model) over target tokens, in nats; None without a teacher
    divergence: float | None = None


@dataclass(frozen=True)
class DomainLosses:
    """A model's losses."""

    model: Path  # the Hugging Face directory
    data: Path  # the split's folder
    domains: dict[str, DomainLoss]  # the result for each domain, in the tree's order
    limit: int | None = None  # rows of each domain at most; None for all
    teacher: Path | None = None  # the directory of the teacher, if there is one

    @property
    def mean_divergence(self) -> float | None:
        """Mean of the domains' divergences; None without a teacher."""
        found = [one.divergence for one in self.domains.values() if one.divergence is not None]
        return sum(found) / len(found) if found else None

    @property
    def mean(self) -> float:
        """Mean of the domains' losses, each with the same weight."""
        return sum(found.loss for found in self.domains.values()) / len(self.domains)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": str(self.model),
            "data": str(self.data),
            "limit": self.limit,
            "mean_loss": self.mean,
            "teacher": None if self.teacher is None else str(self.teacher),
            "mean_divergence": self.mean_divergence,
            "domains": {name: asdict(found) for name, found in self.domains.items()},
        }

    def as_table(self) -> Table:
        """A row for each domain, and their mean."""
        rows, total = [], 0
        for name, found in self.domains.items():
            bits = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
            cells = (f"{found.loss:.4f}", f"{found.perplexity:.2f}", bits, f"{found.tokens:,}")
            rows.append((name, *cells, *_shown(found.divergence)))
            total += found.tokens
        means = ("mean", f"{self.mean:.4f}", f"{_exp(self.mean):.2f}", "", f"{total:,}")
        rows.append((*means, *_shown(self.mean_divergence)))
        limit = f"at most {self.limit} rows of each domain, evenly spread"
        header = ("domain", "loss", "perplexity", "bits/byte", "tokens")
        header += () if self.teacher is None else ("divergence",)
        return Table("", header, rows, () if self.limit is None else (limit,))


def evaluate(
    model_directory: str | Path,
    data: str | Path,
    *,
    batch_size: int = 16,
    rows: int | None = None,
    teacher: str | Path | None = None,
) -> DomainLosses:
    """Measure a model on every domain of a split.

    Several processes that a launcher started (`composer -n 2 -m llmshearing.cli evaluate ...`, or
    `torchrun`) share the rows, and each of them returns the result.

    Args:
        model_directory: a directory, or `org/name[@revision]` of the hub.
        data: a split's folder in a data tree, such as `ROOT/eval`.
        batch_size: rows of a forward pass; it does not change the result.
        rows: rows of each domain at most, evenly spread as in a run's evaluation; None for all.
        teacher: a directory, or `org/name[@revision]` of the hub, with the same tokenizer, from
            which to measure KL(teacher || model) too.

    Raises:
        UserError: no model, no tree, no such split, a tokenizer that is not the tree's, a damaged
            shard, damaged weights, or an impossible number.
    """
    folder = Path(data).absolute()
    if batch_size < 1 or (rows is not None and rows < 1):
        raise UserError(f"found batch size {batch_size}, rows {rows}; expected at least 1 of each")
    tree, source = open_inputs(model_directory, folder)
    domains = open_domains(tree, folder.name)
    chosen = [evenly_spread(len(domain), rows) for domain in domains]
    batches = [
        (number, taken[start : start + batch_size])
        for number, taken in enumerate(chosen)
        for start in range(0, len(taken), batch_size)
    ]
    ranks = Ranks()
    model = load_model(source).to(own_device()).eval()  # pyright: ignore[reportArgumentType]
    frozen = None
    if teacher is not None:
        frozen = FrozenTeacher(load_model(open_inputs(teacher, folder)[1]).to(own_device()))  # pyright: ignore[reportArgumentType]
    sums = ranks.add_up(_measure(model, frozen, domains, tree, batches, ranks)).tolist()
    found = {}
    for number, domain in enumerate(domains):
        mine = [total for (one, _), total in zip(batches, sums, strict=True) if one == number]
        one = _domain_loss(domain, tree, len(chosen[number]), mine)
        if frozen is not None:
            one = replace(one, divergence=math.fsum(sum_ for *_, sum_ in mine) / one.tokens)
        found[domain.name] = one
    named = None if teacher is None else Path(teacher)
    return DomainLosses(Path(model_directory), Path(data), found, rows, named)


def measure_references(model: str | Path, data: str | Path, batch_size: int = 16) -> References:
    """A model's own losses as reference losses (the paper's "source reference"); see `evaluate`.

    They record what they belong to: the tokenizer and the held-out rows.
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


def evenly_spread(size: int, limit: int | None) -> list[int]:
    """Numbers of the rows to take from a domain of `size` rows, `limit` at most; None for all."""
    used = size if limit is None else min(limit, size)
    return [number * size // used for number in range(used)]


def open_inputs(model_directory: str | Path, folder: Path) -> tuple[DataTree, Source]:
    """The data tree of a split's folder and a model, checked against each other.

    Raises:
        UserError: no model, no tree, no such split, damaged files, or a model with fewer token ids
            or with another tokenizer than the tree's.
    """
    tree = DataTree.open(folder.parent)
    tree.split(folder.name)
    check_files(tree, [folder.name])
    source = read_source(model_directory)
    vocabulary = source.config["vocab_size"]
    if vocabulary < tree.vocabulary:
        raise UserError(
            f"found {vocabulary} token ids in {model_directory}, expected at least the "
            f"{tree.vocabulary} of {tree.root}: prepare the data with the model's tokenizer"
        )
    try:
        same = tree.is_of_tokenizer(source.path)
    except FileNotFoundError:
        return tree, source  # a model without a tokenizer can still be measured on ids
    if not same:
        raise UserError(
            f"found another tokenizer in {model_directory} than the one that made {tree.root}: "
            "prepare the data with the model's tokenizer"
        )
    return tree, source


@torch.inference_mode()
def _measure(
    model: PreTrainedModel,
    teacher: FrozenTeacher | None,
    domains: Sequence[DomainRows],
    tree: DataTree,
    batches: Sequence[tuple[int, list[int]]],
    ranks: Ranks,
) -> Tensor:
    """Sum of losses, number of target tokens and sum of divergences of this rank's batches.

    Zeros for the others. A batch is a domain's number and row numbers. Returns float64, on the CPU.
    [len(batches), 3].
    """
    insert_loss_head(model, LOGIT_CHUNK)
    sums = torch.zeros(len(batches), 3, dtype=torch.float64)
    mine = range(ranks.rank, len(batches), ranks.count)
    total = sum(len(batches[number][1]) for number in mine) * tree.sequence_length
    with Progress("evaluate", total, "tokens", quiet=ranks.rank > 0) as progress:
        for number in mine:
            domain, rows = batches[number]
            tokens, labels = read_rows(
                domains, [(domain, row) for row in rows], tree.sequence_length, tree.vocabulary
            )
            targets, ids = shifted(labels.to(model.device)), tokens.to(model.device)
            compared = None if teacher is None else Distillation(teacher.on({"input_ids": ids}), 0)
            losses: TokenLosses = model(ids, targets=targets, distillation=compared)
            sums[number, 0] = losses.cross_entropy.double().sum()
            sums[number, 1] = (targets != IGNORED).sum()
            if losses.divergence is not None:
                sums[number, 2] = losses.divergence.double().sum()
            progress.advance(tokens.numel(), detail=domains[domain].name)
    return sums


def _domain_loss(
    domain: DomainRows, tree: DataTree, rows: int, sums: Sequence[Sequence[float]]
) -> DomainLoss:
    """The mean over a domain's target tokens. `fsum` rounds once, in whatever order it adds."""
    tokens = int(sum(count for _, count, _ in sums))
    if not tokens:
        raise UserError(
            f"found no target token in {domain.local}, expected some: prepare more held-out text"
        )
    total = math.fsum(total for total, *_ in sums)
    if not math.isfinite(total):
        raise UserError(
            f"found a loss of {total} on {domain.name}, expected a number: the weights are damaged"
        )
    loss = total / tokens
    text = tree.manifest.get("domains", {}).get(domain.name, {})  # all that was tokenised
    bits = None
    if text.get("bytes") and text.get("tokens"):
        bits = loss / math.log(2) * text["tokens"] / text["bytes"]
    return DomainLoss(loss, _exp(loss), bits, tokens, rows)


def _shown(divergence: float | None) -> tuple[str, ...]:
    """The cell of a table, which has none without a teacher."""
    return () if divergence is None else (f"{divergence:.4f}",)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
