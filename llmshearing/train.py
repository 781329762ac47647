"""One run of either stage: a recipe becomes a trainer.

Example:
    composer -n 2 -m llmshearing.train yamls/prune/tiny-llama-to-half.yaml data.root=data/sample
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmshearing.processes import exit_with_parent

if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # a rank ends with its launcher; a run from a shell outlives it
        exit_with_parent()
    # The imports take seconds. Hold stop signals back until `StopSignal` can handle them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})

from composer import Trainer
from composer.core import Callback
from composer.loggers import TensorboardLogger
from composer.utils import dist, reproducibility

from llmshearing import optimization, parallelism, preflight, tracking
from llmshearing.building import (
    build_algorithms,
    build_distiller,
    build_evaluators,
    build_model,
    flops_model,
    importance_plan,
    rows_differ_in_targets,
)
from llmshearing.callbacks.checkpointing import Checkpointing
from llmshearing.callbacks.distilling import Distilling
from llmshearing.callbacks.dynamic_loading import DynamicLoading
from llmshearing.callbacks.exporting import Exporting
from llmshearing.callbacks.heartbeat import Heartbeat
from llmshearing.callbacks.loaded_loss import LoadedLoss
from llmshearing.callbacks.manifest_writer import ManifestWriter
from llmshearing.callbacks.mask_report_writer import MaskReportWriter
from llmshearing.callbacks.mask_start import MaskStart
from llmshearing.callbacks.metrics_file import MetricsFile
from llmshearing.callbacks.stop_signal import Stopped, StopSignal
from llmshearing.callbacks.training_progress import TrainingProgress
from llmshearing.checkpoints.layout import METRICS
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checkpoints.writing import check_writable
from llmshearing.config import Recipe
from llmshearing.data.dataloaders import build_loaders
from llmshearing.errors import STOPPED_STATUS, UserError, exits_on_user_error
from llmshearing.evaluation.task_scores import TaskScores
from llmshearing.files import write_text
from llmshearing.huggingface.weight_files import find_weights
from llmshearing.oneshot_start import cut_first
from llmshearing.preflight import Inputs
from llmshearing.progress import set_up_log
from llmshearing.quantities import seconds, steps
from llmshearing.resuming import check_checkpoint, find_checkpoint, is_finished
from llmshearing.run_manifest import run_manifest
from llmshearing.watchdog import Watchdog, log_phase

log = logging.getLogger(__name__)


@exits_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Run RECIPE.yaml with its key=value overrides.

    Returns:
        0 at the end of the run, 85 if a signal stopped it early.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        raise UserError(f"expected RECIPE.yaml and key=value overrides\n{__doc__}")
    begun = time.monotonic()
    recipe, inputs = preflight.resolve(arguments[0], arguments[1:], dist.get_world_size())
    if recipe.model.initialize == "pretrained":
        find_weights(inputs.source.path)  # here, where no timeout counts a download
    checked = time.monotonic()
    parallelism.join_ranks(recipe)
    times = {"config": checked - begun, "ranks": time.monotonic() - checked}
    directory = Path(recipe.run.directory)
    with parallelism.failures_explained(), parallelism.own_directory(directory):
        return train(recipe, inputs, times)


def train(recipe: Recipe, inputs: Inputs, times: Mapping[str, float] | None = None) -> int:
    """Train to the end of the recipe, from its latest checkpoint if there is one.

    `times` are seconds per part of the start-up so far, for the log.

    Returns:
        The exit status: 0 at the end of the run, 85 if a signal stopped it early.
    """
    parallelism.check_device(recipe)
    directory = Path(recipe.run.directory)
    set_up_log(directory, dist.get_global_rank())
    for phase, took in (times or {}).items():
        log_phase(phase, took)
    for note in inputs.notes:
        log.warning(note)
    recipe, inputs = cut_first(recipe, inputs)
    checkpoint = find_checkpoint(recipe)
    check_writable(directory)  # makes the folder whose absence find_checkpoint would notice
    fixed = run_manifest(recipe, inputs)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
        check_checkpoint(checkpoint, recipe, fixed)
        if is_finished(checkpoint, recipe):
            log.info("%s is the end of this run; nothing is left to do", checkpoint)
            return 0
    if dist.get_global_rank() == 0:  # only now: a refused recipe must not replace the run's own
        write_text(directory / "config.yaml", recipe.to_yaml())
    source = run_manifest(recipe, inputs).source
    log.info("model %s, read from %s", source.repository or recipe.model.path, source.path)
    log.info("recipe\n%s", recipe.to_yaml())
    status = 0
    watchdog = Watchdog(directory, dist.get_global_rank(), dist.get_world_size())
    with StopSignal() as stop, watchdog:
        with tracking.failures_explained(recipe.run):
            trainer = build_trainer(recipe, inputs, checkpoint, stop, watchdog, fixed=fixed)
        try:
            trainer.fit()
        except Stopped:
            log.info("stopped; run the same command again to resume")
            status = STOPPED_STATUS
        trainer.close()
    return status


def build_trainer(
    recipe: Recipe,
    inputs: Inputs,
    checkpoint: Path | None = None,
    stop: StopSignal | None = None,
    watchdog: Watchdog | None = None,
    extra_callbacks: Sequence[Callback] = (),
    fixed: RunManifest | None = None,
) -> Trainer:
    """The Composer trainer of a checked recipe, at its start or at a checkpoint.

    Args:
        recipe: a checked recipe.
        inputs: what the recipe names.
        checkpoint: the checkpoint to resume from, if any.
        stop: stops the run when a signal arrives.
        watchdog: ends a run that hangs.
        extra_callbacks: Composer callbacks that run after this project's own at every event. They
            are the one extension point for users and tests.
        fixed: the run's manifest at its start, if the caller has it.
    """
    directory = Path(recipe.run.directory)
    stop = stop or StopSignal()
    watchdog = watchdog or Watchdog(directory)
    start_timeout = seconds(recipe.run.start_timeout)
    reproducibility.seed_all(recipe.run.seed)
    with watchdog.phase("weights", start_timeout):
        model = build_model(recipe, inputs)
    with watchdog.phase("teacher", start_timeout):
        distiller = model.distiller = build_distiller(recipe, inputs)
    with watchdog.phase("data index", start_timeout):
        loaders = build_loaders(
            recipe.data,
            recipe.mixture,
            inputs.tree,
            inputs.weights,
            recipe.run.seed,
            dist.get_global_rank(),
            dist.get_world_size(),
            inputs.cache,
        )
        loading = DynamicLoading(recipe, inputs.tree, loaders, inputs.references)
    parallelism.before_sharding(model, recipe)
    optimizer = optimization.build_optimizer(model, recipe)
    row_tokens, log_interval = inputs.tree.sequence_length, steps(recipe.run.log_interval)
    metrics = MetricsFile(directory / METRICS, log_interval, row_tokens)
    fixed = fixed or run_manifest(recipe, inputs)
    manifest = ManifestWriter(directory, fixed, loading.mixture)
    heartbeat = Heartbeat(watchdog, start_timeout, seconds(recipe.run.step_timeout))
    start = MaskStart(
        directory,
        importance_plan(recipe, inputs),
        loaders.rows,
        recipe.data.eval_batch,
        steps(recipe.run.duration),
        heartbeat.enter,
    )
    checkpointing = Checkpointing(
        directory,
        due=stop.or_every(recipe.run.checkpoint_interval),
        kind=recipe.run.checkpoint,
        keep=recipe.run.keep_checkpoints,
        manifest=manifest.manifest,
        before=metrics.flush,
        resume=checkpoint,
    )
    # Composer calls callbacks in this order at every event.
    callbacks = [
        stop,  # first: all ranks agree to stop before anything else acts on the step
        loading,  # moves the mixture, so it comes before what logs or saves the mixture
        heartbeat,  # tells the watchdog what the callbacks below are about to do
        TrainingProgress(
            log_interval,
            recipe.data.global_batch * row_tokens,
            steps(recipe.run.duration),
            flops_model(recipe, inputs),
        ),
        start,  # scores the source before anything changes it
        # Before the last checkpoint: a run killed after it counts as finished, and then needs its
        # report.
        MaskReportWriter(directory, start, heartbeat.enter),
        checkpointing,  # after everything that changes what is saved
        manifest,
    ]
    if recipe.run.export_interval is not None:
        interval = steps(recipe.run.export_interval)
        callbacks.append(Exporting(directory, interval, checkpointing, heartbeat.enter))
    if distiller is not None:
        weight = optimization.divergence_weight(recipe)
        callbacks.append(Distilling(distiller, weight, loading.domains, log_interval))
    if recipe.evaluation.wanted:
        scores = TaskScores(recipe.evaluation, inputs.source.path, heartbeat.enter)
        callbacks.insert(3, scores)  # after the heartbeat: scoring takes its time
    if recipe.model.initialize == "pretrained":
        callbacks.append(LoadedLoss(inputs.source.path, fixed.data, heartbeat.enter))
    watchdog.enter("the sharding", start_timeout)
    begun = time.monotonic()
    trainer = Trainer(
        model=model,
        train_dataloader=loaders.train,
        eval_dataloader=build_evaluators(recipe, loaders),
        optimizers=optimizer,
        schedulers=optimization.build_schedule(optimizer, recipe),
        step_schedulers_every_batch=True,
        max_duration=recipe.run.duration,
        algorithms=build_algorithms(recipe, model, optimizer, loading.domains),
        callbacks=[*callbacks, *extra_callbacks],
        loggers=[
            metrics,
            TensorboardLogger(log_dir=str(directory / "tensorboard")),
            *tracking.loggers(recipe.run),
        ],
        run_name=directory.name,
        device_train_microbatch_size=recipe.data.microbatch,
        accumulate_train_batch_on_tokens=rows_differ_in_targets(recipe, inputs),
        precision=recipe.model.precision,
        parallelism_config=parallelism.trainer_section(recipe),
        progress_bar=False,
        log_to_console=False,
        seed=recipe.run.seed,
    )
    parallelism.after_sharding(model)
    log_phase("sharding", time.monotonic() - begun)
    return trainer


if __name__ == "__main__":
    sys.exit(main())
