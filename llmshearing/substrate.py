"""The one module that touches private names of Composer or works around the libraries below.

Each function says which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from composer.distributed import prepare_distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
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


def gradient_overcount() -> float:
    """By how much the backend's averaging reduce-scatter overstates a mean.

    gloo on torch 2.7 sums where an average is asked, so that FSDP2's gradients on CPUs come out
    world-size times too large; later versions average. Measured rather than assumed.
    """
    if not dist.is_initialized() or dist.get_backend() != "gloo" or dist.get_world_size() == 1:
        return 1.0
    ones = torch.ones(dist.get_world_size())
    mean = torch.empty(1)
    dist.reduce_scatter_tensor(mean, ones, op=dist.ReduceOp.AVG)
    return float(mean)
