"""How a run is distributed: one process, DDP, FSDP2, FSDP1, or replicated groups of shards."""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config, FSDPConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from transformers import PreTrainedModel

from llmshearing import substrate
from llmshearing.config import Recipe
from llmshearing.errors import RUN_ERROR_STATUS, USER_ERROR_STATUS, RunError, UserError
from llmshearing.files import lock_directory
from llmshearing.models.blocks import decoder_blocks, decoder_of
from llmshearing.models.shearing import ShearingModel
from llmshearing.quantities import seconds

CONNECT_GRACE_SECONDS = 5.0  # torch's own timeout names the missing ranks, so it goes first


def check_device(recipe: Recipe) -> None:
    """Refuse a recipe that needs a GPU where there is none, with a UserError."""
    if torch.cuda.is_available():
        return
    if recipe.model.precision != "fp32":
        raise UserError(
            f"model.precision: found {recipe.model.precision}, which needs a GPU, and this "
            "machine has none; set model.precision=fp32"
        )
    if recipe.parallelism == "fsdp1":
        raise UserError(
            "parallelism: found fsdp1, which needs GPUs, and this machine has none; set "
            "parallelism=fsdp2, which also shards on CPUs"
        )


def join_ranks(recipe: Recipe) -> None:
    """Wait until all ranks of the run have connected; a single process does not wait.

    Raises:
        RunError: not all ranks connected in time.
    """
    if dist.get_world_size() == 1:
        return  # no process group: nothing to close, and no thread that waits
    start, step = seconds(recipe.run.start_timeout), seconds(recipe.run.step_timeout)
    waited = (
        f"rank {dist.get_global_rank()} waited {start:g} s (run.start_timeout) for the "
        f"{dist.get_world_size()} ranks of the run, and not all connected"
    )
    advice = (
        "Check the logs of the other ranks, MASTER_ADDR and MASTER_PORT, or raise "
        "run.start_timeout if they need longer"
    )
    # torch waits forever for another program that listens on MASTER_PORT and never answers.
    overdue = threading.Timer(start + CONNECT_GRACE_SECONDS, _end, [f"{waited}. {advice}"])
    overdue.daemon = True
    overdue.start()
    try:
        dist.initialize_dist(get_device(), timeout=start)
    except (torch.distributed.DistError, RuntimeError) as error:
        raise RunError(f"{waited}: {_first_line(error)}. {advice}") from error
    finally:
        overdue.cancel()
    # Collectives must time out after the watchdog, which writes the stacks.
    substrate.limit_collectives(2 * max(start, step) + 60)


def _end(message: str) -> None:
    """End the process from a thread, with the message and status of a `RunError`."""
    os.write(2, f"error: {message}\n".encode())
    os._exit(RUN_ERROR_STATUS)


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[None]:
    """Own the run directory until the run ends; rank 0 holds the lock for all ranks.

    Raises:
        UserError: another run owns it.
    """
    with contextlib.ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(lock_directory(directory)))
        yield


def on_first_rank(action: Callable[[], object]) -> None:
    """Run an action on rank 0, while the others wait.

    Raises:
        UserError, OSError: the action failed. Only rank 0 raises this; the other ranks exit with
            its status, so that there is one message.
    """
    failure = None
    if dist.get_global_rank() == 0:
        try:
            action()
        except (UserError, OSError) as error:
            failure = error
    failed = [failure is not None]
    dist.broadcast_object_list(failed, src=0)
    if failure is not None:
        raise failure
    if failed[0]:
        raise SystemExit(USER_ERROR_STATUS)


class HybridFSDP2Config(FSDP2Config):
    """FSDP2 over a mesh of replicas x shards.

    Composer builds the mesh from two properties, which in its own FSDP2 config always stand for one
    dimension. It overwrites a mesh that is given to the config.
    """

    def __init__(self, replicas: int, shards: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._replicas, self._shards = replicas, shards

    @property
    def data_parallel_shard_degree(self) -> int:
        """The second dimension of the mesh."""
        return self._shards

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        """The first dimension of the mesh."""
        return self._replicas


def is_sharded(recipe: Recipe) -> bool:
    """Whether the model is sharded; one process has nothing to shard."""
    return recipe.parallelism != "ddp" and dist.get_world_size() > 1


def shard_ranks(recipe: Recipe) -> int:
    """Ranks among which one copy of the model is sharded."""
    return recipe.shard_ranks or dist.get_world_size()


def fsdp1_shards(recipe: Recipe) -> int:
    """Under FSDP1 the ranks among which the weights are sharded, else 0."""
    return shard_ranks(recipe) if is_sharded(recipe) and recipe.parallelism == "fsdp1" else 0


def trainer_section(recipe: Recipe) -> dict[str, Any] | None:
    """Composer's parallelism section; None for one process and for DDP."""
    if not is_sharded(recipe):
        return None
    shards = shard_ranks(recipe)
    replicas = dist.get_world_size() // shards
    common: dict[str, Any] = {"activation_checkpointing": recipe.model.activation_checkpointing}
    if recipe.parallelism == "fsdp1":
        if replicas > 1:
            common |= {
                "sharding_strategy": "HYBRID_SHARD",
                "data_parallel_shard_degree": shards,
                "data_parallel_replicate_degree": replicas,
            }
        return {"fsdp": FSDPConfig(activation_checkpointing_reentrant=False, **common)}
    substrate.average_gradients_on_gloo()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        if replicas > 1:
            substrate.record_events_on_cpus()
            return {"fsdp": HybridFSDP2Config(replicas, shards, **common)}
        return {"fsdp": FSDP2Config(**common)}


def before_sharding(model: ShearingModel, recipe: Recipe) -> None:
    """Keep the masks out of FSDP1, which casts and flattens all that it wraps.

    Every rank then holds all masks, and gradient clipping averages their gradients.
    """
    if fsdp1_shards(recipe) and model.masks is not None:
        substrate.leave_unsharded(model.masks.to(torch.cuda.current_device()))


def shard_frozen(model: PreTrainedModel, recipe: Recipe, *, on_host: bool) -> None:
    """Shard a model that is not trained as the run shards its own, with FSDP2, in place.

    Args:
        model: on the meta device; its decoder and its output head become separate, so that the
            head's weight can be gathered outside the model's forward pass.
        recipe: of the run.
        on_host: keep the shards in host memory.
    """
    shards, device = shard_ranks(recipe), get_device().name
    replicas = dist.get_world_size() // shards
    sizes = (shards,) if replicas == 1 else (replicas, shards)
    names = ("shard",) if replicas == 1 else ("replicate", "shard")
    settings: dict[str, Any] = {
        "mesh": init_device_mesh("cuda" if device == "gpu" else device, sizes, mesh_dim_names=names)
    }
    if on_host:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    decoder: Any = decoder_of(model)
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    tied = head.weight is embedding.weight
    for block in decoder_blocks(model):
        fully_shard(block, **settings)
    fully_shard(decoder, **settings)
    if tied:
        head.weight = embedding.weight
    else:
        fully_shard(head, **settings)


def after_sharding(model: ShearingModel) -> None:
    """Keep the masks in float32 under FSDP2, whatever the precision of the weights."""
    if model.masks is not None:
        substrate.keep_float32(model.masks)


@contextlib.contextmanager
def failures_explained() -> Iterator[None]:
    """Replace a traceback through the libraries if another process caused the failure.

    Raises:
        RunError: another rank was lost, or a loader worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        rank, text = dist.get_global_rank(), str(error)
        if "DataLoader worker" in text and ("killed" in text or "exited" in text):
            raise RunError(
                f"rank {rank} lost a loader worker: {_first_line(error)}. Most often the system "
                "has killed it for lack of memory: lower data.workers, or provide more memory. Run "
                "the same command again to resume from the last checkpoint"
            ) from error
        if "gloo" in text or isinstance(error, torch.distributed.DistBackendError):
            raise RunError(
                f"rank {rank} lost the connection to the other ranks ({_first_line(error)}): one "
                "of them has ended, and its own message says why. Run the same command again to "
                "resume from the last checkpoint"
            ) from error
        raise


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
