"""The parts of a trainer that need several packages: model, evaluators and algorithms."""

from collections.abc import Sequence

import torch
from composer.core import Algorithm, Evaluator
from composer.utils import get_device
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llmshearing import optimization, parallelism, substrate
from llmshearing.architecture.flops import (
    forward_flops_per_token,
    peak_flops,
    training_flops_per_token,
)
from llmshearing.callbacks.gradients import GradientClipping
from llmshearing.callbacks.held_out import EvaluationTimes
from llmshearing.callbacks.mask_clock import MaskClock
from llmshearing.callbacks.mask_start import ImportancePlan
from llmshearing.callbacks.training_progress import FlopsModel
from llmshearing.config import Recipe
from llmshearing.data.dataloaders import Loaders
from llmshearing.huggingface.source import Source, empty_model, fill, load_model, whole
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.models.blocks import compile_blocks, recompute_blocks
from llmshearing.models.settings import DistillationSettings
from llmshearing.models.shearing import ShearingModel
from llmshearing.models.sparse_teacher import CachedTeacher
from llmshearing.models.teacher import Distiller, FrozenTeacher
from llmshearing.preflight import Inputs
from llmshearing.pruning.budget_masks import build_masks
from llmshearing.quantities import steps

# An importance pass may cost this fraction of a run's operations, and reads from so many to so many
# rows: 512 are enough (Minitron, arXiv 2407.14679, section 4).
IMPORTANCE_SHARE = 0.01
IMPORTANCE_ROWS = (32, 512)


def build_model(recipe: Recipe, inputs: Inputs) -> ShearingModel:
    """The stock decoder of the source directory, with masks if the recipe prunes.

    The blocks are compiled if the recipe asks for it. The model is not sharded yet.
    """
    settings = recipe.model
    random = settings.initialize == "random"
    if recipe.parallelism == "fsdp2" and parallelism.is_sharded(recipe) and not random:
        # No rank ever holds the whole model: each reads the rows of its own shard.
        weights = WeightFiles(inputs.source.path)
        decoder = empty_model(inputs.source, weights, attention=settings.attention)
        substrate.fill_when_sharded(decoder, lambda: fill(decoder, weights, substrate.local_rows))
    else:
        decoder = load_model(inputs.source, attention=settings.attention, random=random)
    if settings.activation_checkpointing and not parallelism.is_sharded(recipe):
        recompute_blocks(decoder)
    masks = None
    if inputs.target is not None:
        masks = build_masks(inputs.source.table, inputs.target, recipe.pruning, recipe.run.seed)
    domains = len(inputs.tree.split(recipe.data.split))
    model = ShearingModel(decoder, masks, domains, settings.loss_chunk)
    if settings.compile:
        compile_blocks(decoder)
    return model


def build_distiller(recipe: Recipe, inputs: Inputs) -> Distiller | None:
    """The teacher's part of the loss: a cache, or the teacher in memory; None without either.

    In memory it is sharded or offloaded as the recipe says. In pruning it is a second copy of the
    source, whose own weights are trained.
    """
    settings, domains = recipe.distillation, len(inputs.tree.split(recipe.data.split))
    if settings is None:
        return None
    beta, temperature = settings.divergence_beta, settings.temperature
    if inputs.cache is not None:
        return Distiller(CachedTeacher(inputs.cache.vocabulary), beta, temperature, domains)
    if inputs.teacher is None:
        return None
    offload = settings.teacher_sharding == "offload"
    model, weights = empty_teacher(recipe, settings, inputs.teacher)
    sharded = parallelism.is_sharded(recipe)
    if sharded:
        parallelism.shard_frozen(model, recipe, on_host=offload)
    host = torch.device("cpu") if offload else None
    fill(model, weights, substrate.local_rows if sharded else whole, host)
    if not sharded and not offload:
        get_device().module_to_device(model)
    return Distiller(FrozenTeacher(model), beta, temperature, domains)


def empty_teacher(
    recipe: Recipe, settings: DistillationSettings, source: Source
) -> tuple[PreTrainedModel, WeightFiles]:
    """The teacher without its weights, in the precision of the recipe, and the weights."""
    weights = WeightFiles(source.path)
    narrow = settings.narrow_teacher(recipe.model.precision)
    dtype = torch.bfloat16 if narrow else torch.float32
    return empty_model(source, weights, attention=recipe.model.attention, dtype=dtype), weights


def build_evaluators(recipe: Recipe, loaders: Loaders) -> list[Evaluator]:
    """One evaluator per domain, so that Composer logs one held-out loss per domain."""
    interval = steps(recipe.run.eval_interval)
    return [
        Evaluator(
            label=name,
            dataloader=loader,
            metric_names=["loss"],
            eval_interval=EvaluationTimes(interval),
        )
        for name, loader in loaders.held_out.items()
    ]


def build_algorithms(
    recipe: Recipe, model: ShearingModel, optimizer: Optimizer, domains: Sequence[str]
) -> list[Algorithm]:
    """What changes training: gradient clipping and, if the recipe prunes, the mask schedule."""
    algorithms: list[Algorithm] = [
        GradientClipping(
            optimization.clip_bounds(optimizer, recipe),
            domains,
            fsdp1_shards=parallelism.fsdp1_shards(recipe),
        )
    ]
    if model.masks is not None:
        per_rank = recipe.pruning.noise == "per_rank"
        schedule = optimization.mask_schedule(recipe)
        algorithms.append(MaskClock(model.masks, schedule, noise_per_rank=per_rank))
    return algorithms


def flops_model(recipe: Recipe, inputs: Inputs) -> FlopsModel:
    """FLOPs per trained token and the device's peak.

    A masked step costs what the source costs; a teacher adds its forward pass.
    """
    length = inputs.tree.sequence_length
    flops = training_flops_per_token(inputs.source.table, length)
    if inputs.teacher is not None:
        flops += forward_flops_per_token(inputs.teacher.table, length)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this processor"
    return FlopsModel(
        flops,
        recipe.run.peak_flops or peak_flops(device),
        device,
    )


def importance_plan(recipe: Recipe, inputs: Inputs) -> ImportancePlan:
    """Where the masks start: by importance if its pass is cheap, or if the recipe asks for it.

    Operations are those of `architecture/flops.py`: a forward pass per measured row of the source,
    against those of the whole run.
    """
    settings, rows = recipe.pruning, 0
    wanted = settings.start != "uniform"
    if inputs.scores is not None:
        reason = f"by the importance of the units in {settings.importance}"
        return ImportancePlan(settings.importance, inputs.scores, 0, 0.0, wanted, reason)
    table, length = inputs.source.table, inputs.tree.sequence_length
    trained = steps(recipe.run.duration) * recipe.data.global_batch
    cost = forward_flops_per_token(table, length) / flops_model(recipe, inputs).flops_per_token
    if settings.start == "importance":
        rows = IMPORTANCE_ROWS[1]
    elif (affordable := int(IMPORTANCE_SHARE * trained / cost)) >= IMPORTANCE_ROWS[0]:
        rows = min(affordable, IMPORTANCE_ROWS[1])
    if parallelism.fsdp1_shards(recipe):  # it flattens the weights that the scores are made of
        rows = 0
    least = IMPORTANCE_ROWS[0] * cost / trained
    if not wanted:
        reason = "alike, as pruning.start=uniform asks"
    elif rows:
        reason = (
            f"by the importance of the units, measured on {rows} rows of all domains for "
            f"{rows * cost / trained:.2%} of the run's operations"
        )
    elif parallelism.fsdp1_shards(recipe):
        reason = "alike: fsdp1 cannot measure importance; give pruning.importance"
    else:
        reason = (
            f"alike: measuring importance on {IMPORTANCE_ROWS[0]} rows would cost {least:.1%} of "
            f"the run's operations, more than {IMPORTANCE_SHARE:.0%}; give pruning.importance or "
            "pruning.start=importance to start by it"
        )
    return ImportancePlan(None, None, rows, rows * cost / trained, wanted and rows > 0, reason)


def rows_differ_in_targets(recipe: Recipe, inputs: Inputs) -> bool:
    """Whether some domain holds chats, so that a batch's mean has to count its target tokens."""
    return any(info.chat for info in inputs.tree.split(recipe.data.split).values())
