"""Optimizer and learning-rate schedules: weights and masks descend, multipliers ascend."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from llmshearing.config import Recipe
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskSchedule
from llmshearing.pruning.settings import PruningSettings
from llmshearing.quantities import steps

# Reserve at least 1/8 of the steps between reaching the target sizes and freezing the choice for
# the decision phase.
DECISION_FRACTION = 8


def build_optimizer(model: ShearingModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the weights and, when pruning, over masks and multipliers.

    The multipliers' groups maximise: the constrained problem is a minimum over weights and masks
    and a maximum over multipliers (paper, eq. 2). The first group holds the weights and has an
    empty `name`; the name of each other group says what it holds.
    """
    settings = recipe.optimizer
    weights = {"weight_decay": settings.weight_decay, "lr": settings.learning_rate}
    groups: list[dict] = [{"name": "", "params": list(model.model.parameters()), **weights}]
    if model.masks is not None:
        groups += mask_groups(model.masks, recipe.pruning)
    first, second = settings.betas
    return torch.optim.AdamW(groups, betas=(first, second), eps=settings.eps)


def mask_groups(masks: Masks, pruning: PruningSettings) -> list[dict]:
    """The optimizer groups of masks and multipliers."""
    logits = list(masks.log_alpha.parameters())
    groups: list[dict] = [
        {"name": "masks", "params": logits, "lr": pruning.learning_rate, "maximize": False}
    ]
    rates = (pruning.linear_learning_rate, pruning.quadratic_learning_rate)
    for kind, rate, multipliers in masks.multipliers.by_rate(*rates):
        name = f"{kind}_multipliers"
        groups.append({"name": name, "params": multipliers, "lr": rate, "maximize": True})
    return [{**group, "weight_decay": 0.0} for group in groups]


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """Warmup and cosine for the weights; constant, then a cosine, for masks and multipliers."""
    total = steps(recipe.run.duration)
    first, length = recipe.optimizer.schedule(total)
    warmup = steps(recipe.optimizer.warmup, length)
    whole = warmup_cosine(warmup, length, recipe.optimizer.final_fraction)
    phases = mask_schedule(recipe)
    masks = hold_cosine(phases.warmup, total, recipe.pruning.final_fraction, phases.freeze)
    others = len(optimizer.param_groups) - 1
    return LambdaLR(optimizer, [lambda step: whole(first + step), *[masks] * others])


def mask_schedule(recipe: Recipe) -> MaskSchedule:
    """The phases of a pruning run, in steps."""
    total, settings = steps(recipe.run.duration), recipe.pruning
    warmup = steps(settings.warmup, total)
    by_budget = recipe.target is not None and recipe.target.parameters is not None
    fix_shape = max(warmup, steps(settings.fix_shape, total)) if by_budget else 0
    shaped = max(warmup, fix_shape)
    freeze = max(shaped, steps(settings.freeze, total))
    sharpen_until = steps(settings.sharpen_until, total)
    never = total + 1  # the last evaluation is at `total`
    freezes = freeze < total
    if freezes:  # masks must be sharp before they decide, and decide before they freeze
        sharpen_until = min(sharpen_until, freeze - max(1, (freeze - shaped) // DECISION_FRACTION))
    return MaskSchedule(
        warmup=warmup,
        sharpen_until=sharpen_until,
        decide=max(shaped, sharpen_until) if freezes else never,
        freeze=freeze if freezes else never,
        sharpness=settings.sharpness,
        fix_shape=fix_shape,
    )


def divergence_weight(recipe: Recipe) -> Callable[[int], float]:
    """The weight of a teacher's divergence by step; 0 without distillation."""
    settings, total = recipe.distillation, steps(recipe.run.duration)
    if settings is None:
        return lambda _: 0.0
    if settings.schedule == "constant":
        return lambda _: settings.weight
    warmup, decay = steps(recipe.optimizer.warmup, total), steps(settings.decay, total)

    def weight(step: int) -> float:
        rising = (step + 1) / (warmup + 1)  # as the learning rate rises
        falling = (total - step) / (decay + 1)
        return settings.weight * min(1.0, rising, falling)

    return weight


def clip_bounds(optimizer: torch.optim.Optimizer, recipe: Recipe) -> list[float]:
    """The gradient norm bound of each optimizer group."""
    others = len(optimizer.param_groups) - 1
    return [recipe.optimizer.clip_norm, *[recipe.pruning.clip_norm] * others]


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
