"""Gradient clipping with a bound of its own for each group of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmshearing.substrate import gradient_overcount


class GradientClipping(Algorithm):
    """Clips each optimizer group's gradient norm and logs it.

    Weights are clipped by themselves, so that the masks' penalty cannot shrink their step.

    Args:
        bounds: per optimizer group the largest norm; 0 means none.
        names: what each group's norm is logged as.
        sharded: whether FSDP2 reduces the gradients.
    """

    def __init__(self, bounds: Sequence[float], names: Sequence[str], *, sharded: bool) -> None:
        self.bounds, self.names = tuple(bounds), tuple(names)
        self.overcount = gradient_overcount() if sharded else 1.0

    def match(self, event: Event, state: State) -> bool:
        """When all microbatches' gradients are there."""
        del state
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clip."""
        del event
        groups = state.optimizers[0].param_groups
        norms = {}
        for group, bound, name in zip(groups, self.bounds, self.names, strict=True):
            parameters = [p for p in group["params"] if p.grad is not None]
            if self.overcount != 1.0:
                torch._foreach_div_([p.grad for p in parameters], self.overcount)
            norm = total_norm(p.grad for p in parameters)
            if bound > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, bound, norm)
            norms[f"optimizer/gradient_norm{name}"] = norm.item()
        logger.log_metrics(norms)


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """The norm of all gradients together, the same on every rank."""
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
