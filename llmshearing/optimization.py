"""The optimizer and its schedule: weights descend, masks descend, multipliers ascend."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from llmshearing.config import Recipe, steps
from llmshearing.models.shearing import ShearingModel

# Suffixes under which each group's gradient norm is logged, in the groups' order.
GROUP_NAMES = ("", "_masks", "_multipliers")


def build_optimizer(model: ShearingModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the weights and, while pruning, over masks and multipliers.

    The multipliers' group maximises: the constrained problem is a minimum over weights and masks
    and a maximum over multipliers (paper, eq. 2).
    """
    settings = recipe.optimizer
    groups: list[dict] = [
        {
            "params": list(model.model.parameters()),
            "lr": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        }
    ]
    if model.masks is not None:
        own = {"lr": recipe.pruning.learning_rate, "weight_decay": 0.0}
        groups.append({"params": list(model.masks.mask_parameters()), **own})
        groups.append(
            {"params": list(model.masks.multipliers.parameters()), "maximize": True, **own}
        )
    first, second = settings.betas
    return torch.optim.AdamW(groups, betas=(first, second), eps=settings.eps)


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """Warmup and cosine for the weights; masks and multipliers keep their rate."""
    total = steps(recipe.run.duration)
    warmup = steps(recipe.optimizer.warmup, total)
    weights = warmup_cosine(warmup, total, recipe.optimizer.final_fraction)
    others = len(optimizer.param_groups) - 1
    return LambdaLR(optimizer, [weights, *[_constant] * others])


def clip_bounds(recipe: Recipe) -> list[float]:
    """The norm bound of each optimizer group."""
    masks = [recipe.pruning.clip_norm] * 2 if recipe.prunes else []
    return [recipe.optimizer.clip_norm, *masks]


def warmup_cosine(warmup: int, total: int, final: float) -> Callable[[int], float]:
    """Learning-rate factor by step: linear from 0 to 1, then half a cosine down to `final`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _constant(step: int) -> float:
    del step
    return 1.0
