"""The one module that touches private names of Composer or works around the libraries below.

Each function says which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from composer.distributed import prepare_distributed
from composer.utils.parallelism import FSDP2Config
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

log = logging.getLogger(__name__)


def keep_float32(module: nn.Module) -> None:
    """Exempt a sharded module from mixed precision.

    Composer gives one precision policy to all modules that it shards; the masks must stay float32.
    The policy is read when the first forward initialises the parameter group.
    """
    if isinstance(module, FSDPModule):
        group = module._get_fsdp_state()._fsdp_param_group
        if group is not None:
            group.mp_policy = MixedPrecisionPolicy()


def fill_when_sharded(decoder: nn.Module, fill: Callable[[], None]) -> None:
    """Fill a decoder on the meta device as soon as Composer has sharded it.

    Composer's own `meta_init` moves every module to a CUDA device, which a CPU run has not, and
    asks each for a `reset_parameters`, which Transformers' have not. Where no such decoder is to be
    filled, nothing is on the meta device and its `meta_init` would do nothing either.
    """

    def meta_init(model: nn.Module) -> None:
        if any(module is decoder for module in model.modules()):
            fill()

    prepare_distributed.meta_init = meta_init


def local_rows(parameter: Tensor) -> tuple[Tensor, slice]:
    """The part of a sharded parameter that this rank holds, and which of its rows that is.

    The function that tells is private to torch; its checkpoints use it for the same.
    """
    assert isinstance(parameter, DTensor)
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    assert tuple(shape[1:]) == tuple(parameter.shape[1:]), "sharded along rows"
    return parameter.to_local(), slice(offset[0], offset[0] + shape[0])


def average_gradients_on_gloo() -> None:
    """Let FSDP2 average gradients itself where the backend cannot: gloo, on CPUs.

    gloo on torch 2.7 sums where a reduce-scatter asks for an average, and refuses an all-reduce
    that does, so that sharded gradients come out too large and hybrid sharding fails. With a
    factor before and one after the reduction, as torch itself does for float16, only sums are
    asked for. Nothing is touched on other backends.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        _fsdp_collectives._get_gradient_divide_factors = _divide_after_the_sum


def _divide_after_the_sum(
    reduce_scatter_group: dist.ProcessGroup,
    all_reduce_group: dist.ProcessGroup | None,
    *_: Any,
) -> tuple[float, float]:
    replicas = 1 if all_reduce_group is None else all_reduce_group.size()
    return 1.0, float(reduce_scatter_group.size() * replicas)


def record_events_on_cpus() -> None:
    """Let FSDP2's hybrid sharding run on CPUs, as tests do.

    It asserts that the all-reduce's stream has recorded an event; the streams of CPUs, which stand
    for those of GPUs in code for both, record none.
    """
    stream: Any = torch.cpu.Stream
    stream.record_event = lambda _: torch.cpu.Event()


class HybridFSDP2Config(FSDP2Config):
    """FSDP2 over a mesh of replicas x shards.

    Composer makes the mesh by itself, from two properties that its FSDP2 config has for FSDP1's
    sake and that always say "one dimension"; a mesh given to the config is overwritten.

    Args:
        replicas: copies of the model.
        shards: ranks among which each copy is sharded.
        settings: Composer's own.
    """

    def __init__(self, replicas: int, shards: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._replicas, self._shards = replicas, shards

    @property
    def data_parallel_shard_degree(self) -> int:
        """The mesh's second dimension."""
        return self._shards

    @property
    def data_parallel_replicate_degree(self) -> int | None:
        """The mesh's first dimension."""
        return self._replicas


def limit_collectives(seconds: float) -> None:
    """Change how long a collective may take; torch has no public call for it after the start."""
    if dist.is_initialized():
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
