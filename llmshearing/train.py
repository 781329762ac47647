"""One run of either stage: a recipe becomes a trainer.

Example:
    composer -n 2 -m llmshearing.train yamls/prune/tiny-llama-to-half.yaml data.root=data/sample
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmshearing.processes import exit_with_parent

if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # set by launchers; a run started from a shell outlives it
        exit_with_parent()
    # The imports take a while; a signal that asks the run to stop waits until it can be heeded.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})

import torch
from composer import Trainer
from composer.core import Callback, Evaluator
from composer.loggers import TensorboardLogger
from composer.utils import dist, reproducibility

from llmshearing import optimization, parallelism, preflight, substrate, tracking
from llmshearing.architecture.flops import peak_flops, training_flops_per_token
from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.callbacks.dynamic_loading import DynamicLoading
from llmshearing.callbacks.gradients import GradientClipping
from llmshearing.callbacks.heartbeat import Heartbeat
from llmshearing.callbacks.held_out import EvaluationTimes
from llmshearing.callbacks.loaded_loss import LoadedLoss
from llmshearing.callbacks.manifest import ManifestWriter
from llmshearing.callbacks.mask_clock import MaskClock
from llmshearing.callbacks.mask_report_writer import MaskReportWriter
from llmshearing.callbacks.metrics_file import MetricsFile
from llmshearing.callbacks.stop_signal import EXIT_STATUS, Stopped, StopSignal
from llmshearing.callbacks.training_progress import FlopsModel, TrainingProgress
from llmshearing.checkpoints.layout import (
    check_contents,
    latest_checkpoint,
    read_manifest,
    step_of,
)
from llmshearing.checkpoints.resume_check import check_fits
from llmshearing.checkpoints.writing import check_writable
from llmshearing.config import Recipe, seconds, steps, to_yaml
from llmshearing.errors import UserError, exits_on_user_error
from llmshearing.files import write_text
from llmshearing.huggingface.source import empty_model, fill, load_model
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.models.compiled import compile_blocks
from llmshearing.models.shearing import ShearingModel
from llmshearing.preflight import Inputs
from llmshearing.progress import ConsoleHandler
from llmshearing.pruning.masks import Masks
from llmshearing.watchdog import Watchdog, log_phase

log = logging.getLogger(__name__)


@exits_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Train as RECIPE.yaml and key=value overrides say; 85 where a signal stopped the run early."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        raise UserError(f"expected RECIPE.yaml and key=value overrides\n{__doc__}")
    begun = time.monotonic()
    recipe, inputs = preflight.check(arguments[0], arguments[1:], dist.get_world_size())
    checked = time.monotonic()
    parallelism.join_ranks(recipe)
    times = {"config": checked - begun, "ranks": time.monotonic() - checked}
    directory = Path(recipe.run.directory)
    with parallelism.failures_explained(), parallelism.own_directory(directory):
        return train(recipe, inputs, times)


def train(recipe: Recipe, inputs: Inputs, times: Mapping[str, float] | None = None) -> int:
    """Run a checked recipe to its end, from its latest checkpoint where there is one.

    Args:
        recipe: what to do.
        inputs: what the recipe names.
        times: seconds that each part of the start has taken so far, for the log.

    Returns:
        The exit status: 0 at the end of the run, 85 where a signal stopped it before.
    """
    parallelism.check_device(recipe)
    directory = Path(recipe.run.directory)
    check_writable(directory)
    set_up_log(directory)
    for what, took in (times or {}).items():
        log_phase(what, took)
    checkpoint = resume_path(recipe)
    if checkpoint is not None:
        for change in check_fits(Path(checkpoint), facts(recipe, inputs)):
            log.warning("the recipe has changed since %s: %s", Path(checkpoint).name, change)
    if checkpoint is not None and recipe.prunes:
        warn_masks_reopened(Path(checkpoint), recipe)
    if checkpoint is not None and step_of(checkpoint) >= steps(recipe.run.duration):
        log.info("%s is the end of this run already; nothing is left to do", checkpoint)
        return 0
    if checkpoint is not None:
        begun = time.monotonic()
        check_contents(checkpoint)
        log_phase("checkpoint checksums", time.monotonic() - begun)
    if dist.get_global_rank() == 0:  # only now: a recipe that is refused leaves the other's
        write_text(directory / "config.yaml", to_yaml(recipe))
    log.info("recipe\n%s", to_yaml(recipe))
    status = 0
    watchdog = Watchdog(directory, dist.get_global_rank(), dist.get_world_size())
    with StopSignal() as stop, watchdog:
        with tracking.failures_explained(recipe.run):
            trainer = build_trainer(recipe, inputs, checkpoint, stop, watchdog)
        try:
            trainer.fit()
        except Stopped:
            log.info("stopped; the same command goes on from here")
            status = EXIT_STATUS
        trainer.close()
    return status


def build_trainer(
    recipe: Recipe,
    inputs: Inputs,
    checkpoint: str | None = None,
    stop: StopSignal | None = None,
    watchdog: Watchdog | None = None,
    extra_callbacks: Sequence[Callback] = (),
) -> Trainer:
    """The Composer trainer of a checked recipe, at its start or at a checkpoint.

    Args:
        recipe: a checked recipe.
        inputs: what the recipe names.
        checkpoint: the checkpoint to resume from, if any.
        stop: stops the run when a signal arrives.
        watchdog: ends a run that hangs.
        extra_callbacks: Composer callbacks that run after this project's own at every event. They
            see what a step has done. They are the one extension point for users and tests.
    """
    stop = stop or StopSignal()
    watchdog = watchdog or Watchdog(Path(recipe.run.directory))
    start = seconds(recipe.run.start_timeout)
    reproducibility.seed_all(recipe.run.seed)
    directory = Path(recipe.run.directory)
    with watchdog.phase("weights", start):
        model = build_model(recipe, inputs)
    with watchdog.phase("data index", start):
        dynamic_loading = DynamicLoading.from_recipe(recipe, inputs.tree)
    if recipe.model.compile:
        compile_blocks(model)
    parallelism.before_sharding(model, recipe)
    optimizer = optimization.build_optimizer(model, recipe)
    total = steps(recipe.run.duration)
    tokens_per_batch = recipe.data.global_batch * inputs.tree.sequence_length
    clipping = GradientClipping(
        optimization.clip_bounds(optimizer, recipe),
        dynamic_loading.domains,
        fsdp1_shards=parallelism.fsdp1_shards(recipe),
    )
    algorithms: list[Any] = [clipping]
    if model.masks is not None:
        per_rank = recipe.pruning.noise == "per_rank"
        schedule = optimization.mask_schedule(recipe)
        algorithms.append(MaskClock(model.masks, schedule, noise_per_rank=per_rank))
    interval = steps(recipe.run.log_interval)
    metrics = MetricsFile(directory / "metrics.jsonl", interval, inputs.tree.sequence_length)
    manifest = ManifestWriter(directory, facts(recipe, inputs), dynamic_loading.mixture)
    heartbeat = Heartbeat(watchdog, start, seconds(recipe.run.step_timeout))
    every = steps(recipe.run.eval_interval)
    watchdog.enter("the sharding", start)
    begun = time.monotonic()
    trainer = Trainer(
        model=model,
        train_dataloader=dynamic_loading.train_loader,
        eval_dataloader=[
            Evaluator(
                label=name,
                dataloader=loader,
                metric_names=["loss"],
                eval_interval=EvaluationTimes(every),
            )
            for name, loader in dynamic_loading.eval_loaders.items()
        ],
        optimizers=optimizer,
        schedulers=optimization.build_schedule(optimizer, recipe),
        step_schedulers_every_batch=True,
        max_duration=recipe.run.duration,
        algorithms=algorithms,
        callbacks=[
            stop,
            dynamic_loading,
            heartbeat,
            TrainingProgress(interval, tokens_per_batch, total, flops_model(recipe, inputs)),
            MaskReportWriter(directory, heartbeat.enter),
            Checkpointing(
                directory,
                due=stop.or_every(recipe.run.checkpoint_interval),
                kind=recipe.run.checkpoint,
                keep=recipe.run.keep_checkpoints,
                manifest=manifest.manifest,
                before=metrics.flush,
                resume=checkpoint,
            ),
            manifest,
            *loaded_loss(recipe, inputs, heartbeat.enter),
            *extra_callbacks,
        ],
        loggers=[
            metrics,
            TensorboardLogger(log_dir=str(directory / "tensorboard")),
            *tracking.loggers(recipe.run),
        ],
        run_name=directory.name,
        device_train_microbatch_size=recipe.data.microbatch,
        accumulate_train_batch_on_tokens=has_chat(recipe, inputs),
        precision=recipe.model.precision,
        parallelism_config=parallelism.trainer_section(recipe),
        progress_bar=False,
        log_to_console=False,
        seed=recipe.run.seed,
    )
    parallelism.after_sharding(model)
    log_phase("sharding", time.monotonic() - begun)
    return trainer


def flops_model(recipe: Recipe, inputs: Inputs) -> FlopsModel:
    """What the run computes per token, and on what. Masked, the source is computed in full."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this processor"
    return FlopsModel(
        training_flops_per_token(inputs.source.table, inputs.tree.sequence_length),
        recipe.run.peak_flops or peak_flops(device),
        device,
    )


def build_model(recipe: Recipe, inputs: Inputs) -> ShearingModel:
    """The stock decoder of the recipe's directory, with masks where it prunes."""
    settings = recipe.model
    random = settings.initialize == "random"
    if recipe.parallelism == "fsdp2" and parallelism.is_sharded(recipe) and not random:
        # No rank ever holds the whole model: each reads the rows that it keeps.
        weights = WeightFiles(inputs.source.path)
        decoder = empty_model(inputs.source, weights, attention=settings.attention)
        substrate.fill_when_sharded(decoder, lambda: fill(decoder, weights, substrate.local_rows))
    else:
        decoder = load_model(inputs.source, attention=settings.attention, random=random)
    if settings.activation_checkpointing and not parallelism.is_sharded(recipe):
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    masks = None
    if inputs.target is not None:
        masks = Masks(
            inputs.source.table, inputs.target, recipe.pruning, recipe.run.seed, inputs.scores
        )
    domains = len(inputs.tree.split(recipe.data.split))
    return ShearingModel(decoder, masks, domains, settings.loss_chunk)


def has_chat(recipe: Recipe, inputs: Inputs) -> bool:
    """Whether rows differ in their number of targets, so that a batch's mean has to count them."""
    return any(info.chat for info in inputs.tree.split(recipe.data.split).values())


def resume_path(recipe: Recipe) -> str | None:
    """The checkpoint to go on from, the same on every rank."""
    found = latest_checkpoint(recipe.run.directory)
    if found is not None and not recipe.run.autoresume:
        raise UserError(
            f"run.directory: {found.parent} holds {found.name}, but run.autoresume=false starts "
            "anew; give a new directory, or leave autoresume on to go on from there"
        )
    shared = [str(found) if found else None]
    dist.broadcast_object_list(shared, src=0)
    if shared[0] is not None:
        log.info("resuming from %s", shared[0])
    return shared[0]


def warn_masks_reopened(checkpoint: Path, recipe: Recipe) -> None:
    """Warn where another duration asks less of the masks than was asked of them already."""
    was = read_manifest(checkpoint).get("masks")
    now = optimization.mask_schedule(recipe).at(step_of(checkpoint))
    if was and (now.ramp < was["ramp"] or (was["frozen"] and not now.frozen)):
        log.warning(
            "at %s the masks were further than run.duration=%s has them there: their choice of "
            "units is open again; to train that choice further, export it and continue from it",
            checkpoint.name,
            recipe.run.duration,
        )


def loaded_loss(recipe: Recipe, inputs: Inputs, beat: Callable[[str], None]) -> list[LoadedLoss]:
    """The check of the loaded weights' loss, where weights are loaded."""
    if recipe.model.initialize == "random":
        return []
    return [LoadedLoss(inputs.source.path, facts(recipe, inputs)["data"], beat)]


def facts(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """What a run's manifest says that does not change while it runs."""
    tree = inputs.tree
    return {
        "recipe": asdict(recipe),
        "source": {
            "path": str(inputs.source.path.resolve()),
            "config": inputs.source.config,
            "shape": asdict(inputs.source.table.source),
        },
        "target": None,
        "data": {
            "root": str(tree.root),
            "sequence_length": tree.sequence_length,
            "tokenizer": tree.tokenizer,
            "fingerprints": {
                name: info.fingerprint for name, info in tree.split(recipe.data.split).items()
            },
            "held_out": {
                "fingerprints": {
                    name: info.fingerprint
                    for name, info in tree.split(recipe.data.eval_split).items()
                },
                "rows": recipe.data.eval_rows,
            },
        },
        "tokens": steps(recipe.run.duration) * recipe.data.global_batch * tree.sequence_length,
    }


def set_up_log(directory: Path) -> None:
    """The project's log on the console and in `log.txt`, from rank 0."""
    logger = logging.getLogger("llmshearing")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    if dist.get_global_rank() != 0:
        logger.setLevel(logging.ERROR)
        return
    directory.mkdir(parents=True, exist_ok=True)
    logger.setLevel(logging.INFO)
    for handler in (ConsoleHandler(), logging.FileHandler(directory / "log.txt")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
