"""Gradient clipping with a separate bound for each group of parameters."""

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
    """Logs and clips the gradient norm of each optimizer group; stops at a non-finite gradient.

    Weights are clipped separately, so the penalty of the masks cannot shrink their step. All norms
    are read from the device at once, and an error is raised before the optimizer uses the gradient.

    Args:
        bounds: the largest norm of each optimizer group; 0 for no bound.
        domains: names of the data's domains.
        fsdp1_shards: number of ranks among which FSDP1 shards the first group (the weights), or 0
            without FSDP1. Its gradients are plain tensors, so norms are summed over shards here.
            All other groups are whole on every rank, and their gradients are averaged here.
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
        """At the start, and once the gradients of all microbatches are summed."""
        return event in (Event.FIT_START, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Attach to the model, or log, check and clip the gradients of a step."""
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
    """Metrics from names and norms of groups; groups of the same name are combined."""
    found: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        key = f"optimizer/gradient_norm_{name}".rstrip("_")
        found[key] = math.hypot(found.get(key, 0.0), norm)
    return found


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, which is the same on every rank."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def across_shards(norm: Tensor, shards: int) -> Tensor:
    """The norm of the whole gradient from the norms of its shards; replicas count once."""
    squares = norm.square()
    dist.all_reduce(squares, reduce_operation="SUM")
    return (squares * shards / dist.get_world_size()).sqrt()


def average(gradients: Sequence[Tensor]) -> None:
    """Average gradients over the ranks, in place."""
    for gradient in gradients:
        dist.all_reduce(gradient, reduce_operation="SUM")
        gradient.div_(dist.get_world_size())
