"""Scores of a model on held-out rows: loss, and divergence from its parent.

Shape legend: B batch, T tokens of a row, N = B T, d hidden width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.architecture.families import family_of
from llmshearing.data.dataset import read_rows
from llmshearing.data.domains import open_domains
from llmshearing.data.tree import DataTree
from llmshearing.evaluation.domain_loss import LOGIT_CHUNK, evenly_spread
from llmshearing.models.blocks import blocks_path, decoder_blocks, decoder_of
from llmshearing.models.divergence import Distillation, TeacherStates
from llmshearing.models.head import insert_loss_head
from llmshearing.models.metrics import IGNORED, shifted
from llmshearing.models.teacher import FrozenTeacher


@dataclass(frozen=True)
class Score:
    """Means over the domains, each with the same weight, of the means over target tokens."""

    loss: float  # cross entropy in nats
    divergence: float  # KL(parent || model) in nats: 0 for the parent


@dataclass(frozen=True)
class Batch:
    """Rows of one domain."""

    domain: int  # its number
    tokens: Tensor  # ids, [B, T]
    targets: Tensor  # the next token of each position, `IGNORED` where there is none, [B, T]

    @property
    def count(self) -> int:
        """Positions with a target."""
        return int((self.targets != IGNORED).sum())


def held_out_batches(
    tree: DataTree, split: str, rows: int, batch_size: int, device: torch.device
) -> list[Batch]:
    """At most `rows` rows of every domain, as a run with `data.eval_rows` takes them."""
    domains, batches = open_domains(tree, split), []
    for number, domain in enumerate(domains):
        chosen = evenly_spread(len(domain), rows)
        for start in range(0, len(chosen), batch_size):
            part = [(number, row) for row in chosen[start : start + batch_size]]
            tokens, labels = read_rows(domains, part, tree.sequence_length, tree.vocabulary)
            batches.append(Batch(number, tokens.to(device), shifted(labels).to(device)))
    return batches


class Parent:
    """The unpruned model, on its device, with what comparisons with it on held-out rows need."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        insert_loss_head(model, LOGIT_CHUNK)
        self.model: Any = model
        self.batches = batches
        self.layers = len(decoder_blocks(model))
        self._teacher = FrozenTeacher(model)
        self._states: dict[int, TeacherStates] = {}  # of each batch; computed when first needed

    @torch.inference_mode()
    def score(self, model: PreTrainedModel) -> Score:
        """The score of a model with the same token ids."""
        insert_loss_head(model, LOGIT_CHUNK)
        losses, divergences = [], []
        for number, batch in enumerate(self.batches):
            if number not in self._states:
                self._states[number] = self._teacher.on({"input_ids": batch.tokens})
            parent = Distillation(self._states[number], weight=1.0)
            found: Any = model(batch.tokens, targets=batch.targets, distillation=parent)
            losses.append(found.cross_entropy.double().sum().item())
            divergences.append(found.divergence.double().sum().item())
        return Score(self.mean(losses), self.mean(divergences))

    def mean(self, sums: Sequence[float]) -> float:
        """The mean over the domains, from the sum over each batch's targets."""
        means = []
        for domain in sorted({batch.domain for batch in self.batches}):
            mine = [n for n, batch in enumerate(self.batches) if batch.domain == domain]
            tokens = sum(self.batches[n].count for n in mine)
            means.append(math.fsum(sums[n] for n in mine) / max(1, tokens))
        return math.fsum(means) / len(means)

    @torch.inference_mode()
    def losses_without(self, number: int, removals: Sequence[Sequence[int]]) -> list[float]:
        """The summed loss of a batch without some layers, for each set of layers to remove.

        Sets are ascending layer numbers, at least one. What comes before the first removed layer is
        computed once for all sets.
        """
        batch = self.batches[number]
        inputs, output_is_tuple = self._block_inputs(batch)
        sums = []
        for removed in removals:
            start = _Start(inputs[removed[0]], output_is_tuple)
            rest = [i for i in range(removed[0] + 1, self.layers) if i not in removed]
            with self._blocks(start, rest):
                found = self.model(batch.tokens, targets=batch.targets)
            sums.append(found.cross_entropy.double().sum().item())
        return sums

    def _block_inputs(self, batch: Batch) -> tuple[list[Tensor], bool]:
        """What each block reads, [B, T, d], and whether blocks return tuples."""
        inputs: list[Tensor] = []
        tuples: list[bool] = []

        def watch(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            inputs.append(arguments[0] if arguments else keywords["hidden_states"])
            tuples.append(isinstance(output, tuple))

        hooks = [
            block.register_forward_hook(watch, with_kwargs=True)
            for block in decoder_blocks(self.model)
        ]
        try:
            decoder_of(self.model)(input_ids=batch.tokens, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return inputs, tuples[0]

    @contextmanager
    def _blocks(self, start: "_Start", rest: Sequence[int]) -> Iterator[None]:
        """Let the stock model's own forward run from `start` through the blocks `rest` only."""
        path, own = blocks_path(self.model), decoder_blocks(self.model)
        config: Any = decoder_of(self.model).config
        family = family_of({"model_type": config.model_type})
        # Transformers 5 takes a block's mask by its place in such a list.
        lists = {name: getattr(config, name) for name in family.layer_lists}
        first = own[0]
        first.forward = start
        try:
            self.model.set_submodule(path, nn.ModuleList([first, *(own[i] for i in rest)]))
            for name, entries in lists.items():
                setattr(config, name, [entries[i] for i in (0, *rest)])
            yield
        finally:
            del first.forward
            self.model.set_submodule(path, own)
            for name, entries in lists.items():
                setattr(config, name, entries)


@dataclass(frozen=True)
class _Start:
    """A block's forward that returns what is there already."""

    hidden: Tensor
    as_tuple: bool

    def __call__(self, *_: Any, **__: Any) -> Any:
        return (self.hidden,) if self.as_tuple else self.hidden
