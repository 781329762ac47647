"""The optimizer and its schedule: weights descend, masks descend, multipliers ascend."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from llmshearing.config import Recipe, steps
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.schedule import MaskSchedule

# Suffixes under which each group's gradient norm is logged, in the groups' order.
GROUP_NAMES = ("", "_masks", "_linear_multipliers", "_quadratic_multipliers")


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
        pruning = recipe.pruning
        masks, multipliers = model.masks, model.masks.multipliers
        for parameters, rate, ascends in (
            (masks.mask_parameters(), pruning.learning_rate, False),
            (multipliers.linear.values(), pruning.linear_learning_rate, True),
            (multipliers.quadratic.values(), pruning.quadratic_learning_rate, True),
        ):
            group = {"params": list(parameters), "lr": rate, "maximize": ascends}
            groups.append({**group, "weight_decay": 0.0})
    first, second = settings.betas
    return torch.optim.AdamW(groups, betas=(first, second), eps=settings.eps)


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """Warmup and cosine for the weights; for masks and multipliers a cosine after their warmup."""
    total = steps(recipe.run.duration)
    warmup = steps(recipe.optimizer.warmup, total)
    weights = warmup_cosine(warmup, total, recipe.optimizer.final_fraction)
    phases = mask_schedule(recipe)
    masks = hold_cosine(phases.warmup, total, recipe.pruning.final_fraction, phases.settle)
    others = len(optimizer.param_groups) - 1
    return LambdaLR(optimizer, [weights, *[masks] * others])


def mask_schedule(recipe: Recipe) -> MaskSchedule:
    """The phases of a pruning run, in steps."""
    total, settings = steps(recipe.run.duration), recipe.pruning
    warmup = steps(settings.warmup, total)
    by_budget = recipe.target is not None and recipe.target.parameters is not None
    choose = max(warmup, steps(settings.choose, total)) if by_budget else 0
    settle = max(warmup, choose, steps(settings.settle, total))
    sharpen_until = steps(settings.sharpen_until, total)
    never = total + 1  # the last evaluation is at `total`
    settles = settle < total
    return MaskSchedule(
        warmup=warmup,
        sharpen_until=sharpen_until,
        decide=max(warmup, choose, sharpen_until) if settles else never,
        settle=settle if settles else never,
        sharpness=settings.sharpness,
        choose=choose,
    )


def clip_bounds(recipe: Recipe) -> list[float]:
    """The norm bound of each optimizer group."""
    masks = [recipe.pruning.clip_norm] * 3 if recipe.prunes else []
    return [recipe.optimizer.clip_norm, *masks]


def warmup_cosine(warmup: int, total: int, final: float) -> Callable[[int], float]:
    """Learning-rate factor by step: linear from 0 to 1, then half a cosine down to `final`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return _cosine(step - warmup, total - warmup, final)

    return factor


def hold_cosine(hold: int, total: int, final: float, stop: int) -> Callable[[int], float]:
    """Learning-rate factor by step: 1 for `hold` steps, half a cosine down, 0 from `stop` on."""

    def factor(step: int) -> float:
        return 0.0 if step >= stop else _cosine(max(0, step - hold), total - hold, final)

    return factor


def _cosine(step: int, length: int, final: float) -> float:
    done = min(1.0, step / max(1, length))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
