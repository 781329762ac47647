"""Gradient clipping with a bound of its own for each group of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmshearing.callbacks.non_finite import RowGradients, not_finite
from llmshearing.models.shearing import unwrapped


class GradientClipping(Algorithm):
    """Clips each optimizer group's gradient norm and logs it; refuses one that is not finite.

    Weights are clipped by themselves, so that the masks' penalty cannot shrink their step. All
    norms are read in one go, and a refusal comes before the optimizer has used the gradient.

    Args:
        bounds: per optimizer group the largest norm; 0 means none.
        domains: names of the data's domains.
        fsdp1_shards: under FSDP1, whose gradients are plain tensors, the ranks among which the
            first group (the weights) is sharded; the others are whole on every rank, and their
            gradients are averaged here. 0 where torch knows by itself.
    """

    def __init__(
        self,
        bounds: Sequence[float],
        domains: Sequence[str],
        *,
        fsdp1_shards: int = 0,
    ) -> None:
        self.bounds, self.domains = tuple(bounds), tuple(domains)
        self.fsdp1_shards = fsdp1_shards
        self.rows = RowGradients()

    def match(self, event: Event, state: State) -> bool:
        """At the start, and when all microbatches' gradients are there."""
        del state
        return event in (Event.FIT_START, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clip, log and look."""
        if event == Event.FIT_START:
            self.rows.attach(unwrapped(state.model))
            return
        groups = state.optimizers[0].param_groups
        gradients = [[p.grad for p in g["params"] if p.grad is not None] for g in groups]
        if self.fsdp1_shards:
            for group in gradients[1:]:
                average(group)
        norms = [total_norm(group) for group in gradients]
        if self.fsdp1_shards:
            norms[0] = across_shards(norms[0], self.fsdp1_shards)
        values = torch.stack([norm.float().to(norms[0].device) for norm in norms]).tolist()
        logger.log_metrics(by_name((group["name"] for group in groups), values))
        if not all(map(math.isfinite, values)):
            raise not_finite(state, "gradient", self.domains, self.rows.odd_rows())
        self.rows.clear()
        for group, norm, bound in zip(groups, norms, self.bounds, strict=True):
            if bound > 0:
                torch.nn.utils.clip_grads_with_norm_(group["params"], bound, norm)


def by_name(names: Iterable[str], norms: Iterable[float]) -> dict[str, float]:
    """The norm of all groups of a name together, as it is logged; the weights have none."""
    found: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        key = f"optimizer/gradient_norm_{name}".rstrip("_")
        found[key] = math.hypot(found.get(key, 0.0), norm)
    return found


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, the same on every rank."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def across_shards(norm: Tensor, shards: int) -> Tensor:
    """The norm of the whole, from that of each rank's shard; replicas count once."""
    squares = norm.square()
    dist.all_reduce(squares, reduce_operation="SUM")
    return (squares * shards / dist.get_world_size()).sqrt()


def average(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their means over the ranks."""
    for gradient in gradients:
        dist.all_reduce(gradient, reduce_operation="SUM")
        gradient.div_(dist.get_world_size())
