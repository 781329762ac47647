"""Saves the state of a trainer and restores it.

The weights and the optimizer's moments are tensors by name, whole (`full`) or each rank's part
(`sharded`). The rest is plain: the clock, schedules, callbacks, the data position, generators. Any
run of the same model can restore a checkpoint, whatever its kind, parallelism and number of ranks.
"""

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from composer.core import State
from composer.core import time as clock
from composer.loggers import Logger
from composer.utils import dist, reproducibility
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from llmshearing.checkpoints.layout import kind_of
from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checkpoints.safe_reading import (
    UNREADABLE,
    SafeReader,
    load_trainer_state,
    not_whole,
)
from llmshearing.checkpoints.writing import (
    TRAINER_FILE,
    without_torch_warnings,
    write_full,
    write_sharded,
)
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

TENSORS = ("model", "optimizers")
OWN = ("run_name",)  # each run keeps its own


def save(path: Path, state: State, manifest: RunManifest) -> None:
    """Write a checkpoint; its path decides the kind. All ranks call it.

    Raises:
        UserError: on every rank, if it cannot be written.
    """
    generators = reproducibility.get_rng_state()
    rest = _without_tensors(state)
    optimizer = state.optimizers[0]
    if kind_of(path) == "full":
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        rest["model"] = get_model_state_dict(state.model, options=options)
        moments = get_optimizer_state_dict(state.model, optimizer, options=options)
        rest["optimizers"] = {type(optimizer).__qualname__: moments}
        write_full(path, {"state": rest, "rng": generators}, manifest)
        return
    # The model first: after an evaluation, FSDP2's root parameters are still unsharded, and reading
    # the model's state shards them again, as the optimizer's state needs them.
    model = get_model_state_dict(state.model)
    moments = get_optimizer_state_dict(state.model, optimizer)
    write_sharded(
        path,
        {"model": model, "optimizer": moments["state"]},
        {"state": rest, "rng": generators, "param_groups": moments["param_groups"]},
        manifest,
    )


# The settings of an optimizer group that come from the recipe.
SETTINGS = ("initial_lr", "betas", "eps", "weight_decay")


def restore(path: Path, state: State, logger: Logger) -> list[dict[str, Any]]:
    """Load a checkpoint into a trainer's state. All ranks call it.

    Returns:
        The random generators' states by rank, for `restore_generators` before the next batch.

    Raises:
        UserError: it is not whole, or belongs to another model.
    """
    settings = [{k: group[k] for k in SETTINGS} for group in state.optimizers[0].param_groups]
    try:
        if kind_of(path) == "full":
            saved = load_trainer_state(path, clock)
            model = saved["state"].pop("model")
            moments = next(iter(saved["state"].pop("optimizers").values()))
            options = StateDictOptions(full_state_dict=True, strict=True)
            set_model_state_dict(state.model, model, options=options)
            set_optimizer_state_dict(state.model, state.optimizers[0], moments, options=options)
        else:
            saved = load_trainer_state(path / TRAINER_FILE, clock)
            _load_sharded(path, state, saved["param_groups"])
    except CheckpointException as error:
        raise _refusal(path, next(iter(error.failures.values()))[0]) from error
    except UNREADABLE as error:
        raise _refusal(path, error) from error
    state.load_state_dict(saved["state"], logger)
    _set(state, settings)
    return saved["rng"]


def _set(state: State, settings: list[dict[str, Any]]) -> None:
    """Use the recipe's learning rates, which may differ from the checkpoint's."""
    groups = state.optimizers[0].param_groups
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    for scheduler in state.schedulers:
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, factor in zip(groups, factors, strict=True):
            group["lr"] = group["initial_lr"] * factor


def _without_tensors(state: State) -> dict[str, Any]:
    """Composer's state without weights and moments, which may be sharded."""
    attributes = state.serialized_attributes
    state.serialized_attributes = [a for a in attributes if a not in (*TENSORS, *OWN)]
    try:
        return state.state_dict()
    finally:
        state.serialized_attributes = attributes


def _load_sharded(path: Path, state: State, param_groups: list[dict[str, Any]]) -> None:
    """Load this rank's part, whichever ranks wrote it."""
    optimizer = state.optimizers[0]
    model = get_model_state_dict(state.model)
    moments = get_optimizer_state_dict(state.model, optimizer)["state"]
    with without_torch_warnings():
        dcp.load({"model": model, "optimizer": moments}, storage_reader=SafeReader(path))
    options = StateDictOptions(strict=True)
    set_model_state_dict(state.model, model, options=options)
    moments = {"state": moments, "param_groups": param_groups}
    set_optimizer_state_dict(state.model, optimizer, moments, options=options)


def restore_generators(states: list[dict[str, Any]]) -> None:
    """Set this rank's generators; on another number of ranks they start from the seed."""
    if len(states) == dist.get_world_size():
        reproducibility.load_rng_state(states)
    else:
        log.info(
            "the checkpoint was written by %d ranks and this run has %d: random generators start "
            "from the seed",
            len(states),
            dist.get_world_size(),
        )


def _refusal(path: Path, error: BaseException) -> UserError:
    """The message about a checkpoint that cannot be loaded into this run."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, EOFError | OSError | UnpicklingError):
        return not_whole(path, error)
    return UserError(
        f"{path} does not fit the model of this recipe ({str(error).splitlines()[0]}); use the "
        "recipe that wrote it, or another run.directory"
    )
