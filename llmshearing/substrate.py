"""The one module that touches private names of the libraries, or works around their faults.

Each function says which name or fault, and why. Composer is imported only where it is needed, so
that commands which do without it can use the rest.
"""

import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp._fully_shard import _fsdp_collectives
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

# The unpickler written in Python. The one in C does not let a subclass override single opcodes.
PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


# FSDP2's function of divide factors also returns the operations of the reduce-scatter and of the
# all-reduce since it takes `force_sum_reduction_for_comms` (torch 2.8).
REDUCE_OPERATIONS = (
    (dist.ReduceOp.SUM, dist.ReduceOp.SUM)
    if "force_sum_reduction_for_comms"
    in signature(_fsdp_collectives._get_gradient_divide_factors).parameters
    else ()
)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors created in the block have shapes and storages but no data, as in torch.compile.

    On the meta device, which is public, attention would take another kernel than on a device.
    Transformers 5 finds packed rows by the values of positions, and assumes some where there are no
    values; a model then gets a mask that it does not get in training.
    """
    import transformers
    from transformers import masking_utils

    stock: Any = masking_utils
    found = stock.find_packed_sequence_indices
    if transformers.__version__ >= "5":
        stock.find_packed_sequence_indices = lambda _: None
    try:
        with FakeTensorMode():
            yield
    finally:
        stock.find_packed_sequence_indices = found


def keep_float32(module: nn.Module) -> None:
    """Exempt a module sharded by FSDP2 from mixed precision.

    Composer gives the same precision policy to all modules that it shards, but masks must stay
    float32. When the first forward pass initialises the parameter group, FSDP2 reads the group's
    policy on torch 2.7, and each parameter's own on later versions.
    """
    if isinstance(module, FSDPModule):
        group = module._get_fsdp_state()._fsdp_param_group
        if group is not None:
            holders: list[Any] = [group, *group.fsdp_params]
            for holder in holders:
                holder.mp_policy = MixedPrecisionPolicy()


def leave_unsharded(module: nn.Module) -> None:
    """Keep a module out of FSDP1: Composer wraps the children whose `_fsdp_wrap` is not False."""
    marked: Any = module
    marked._fsdp_wrap = False


def fill_when_sharded(decoder: nn.Module, fill: Callable[[], None]) -> None:
    """Fill a decoder on the meta device as soon as Composer has sharded it.

    Composer's own `meta_init` moves every module to a CUDA device, which a CPU run does not have,
    and calls `reset_parameters`, which Transformers' modules do not have. It does nothing for a
    model without meta parameters, so replacing it affects this decoder only.
    """
    from composer.distributed import prepare_distributed

    def meta_init(model: nn.Module) -> None:
        if any(module is decoder for module in model.modules()):
            fill()

    prepare_distributed.meta_init = meta_init


def local_rows(parameter: Tensor) -> tuple[Tensor, slice]:
    """The part of a sharded parameter on this rank, and which of its rows that is.

    The function that computes the offset is private to torch, whose checkpoints use it likewise.
    """
    assert isinstance(parameter, DTensor)
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    assert tuple(shape[1:]) == tuple(parameter.shape[1:]), "sharded along rows"
    return parameter.to_local(), slice(offset[0], offset[0] + shape[0])


def average_gradients_on_gloo() -> None:
    """Make FSDP2 average gradients correctly on gloo, the backend of CPUs.

    When a reduce-scatter asks for an average, gloo on torch 2.7 returns the sum; an all-reduce
    that asks for one is an error. With a divisor after the reduction, as torch itself does for
    float16, FSDP2 only asks for sums. Other backends are not affected.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        _fsdp_collectives._get_gradient_divide_factors = _divide_after_the_sum


def _divide_after_the_sum(
    reduce_scatter_group: dist.ProcessGroup | None,
    all_reduce_group: dist.ProcessGroup | None,
    *_: Any,
) -> tuple[Any, ...]:
    groups = [group for group in (reduce_scatter_group, all_reduce_group) if group is not None]
    factors = 1.0, float(math.prod(group.size() for group in groups))
    return (*factors, *REDUCE_OPERATIONS)


def record_events_on_cpus() -> None:
    """Make FSDP2's hybrid sharding run on CPUs, as the tests do.

    It asserts that the stream of the all-reduce has recorded an event, but streams of CPUs record
    none.
    """
    stream: Any = torch.cpu.Stream
    stream.record_event = lambda _: torch.cpu.Event()


def limit_collectives(seconds: float) -> None:
    """Change the timeout of collectives; earlier versions of torch have no public function."""
    if dist.is_initialized():
        change: Any = getattr(dist, "set_timeout", distributed_c10d._set_pg_timeout)
        change(timedelta(seconds=seconds))


def name_head(model: nn.Module, name: str) -> None:
    """Name the output head of a stock model as in weight files.

    Transformers 5 renames the head of GPT-NeoX while it loads and saves: `lm_head` in the model,
    `embed_out` in the file. With one name, tables and checkpoints fit either version.
    """
    stock: Any = model
    head = stock.get_output_embeddings()
    found = next(n for n, module in model.named_modules() if module is head)
    if found == name:
        return
    delattr(model, found)
    setattr(model, name, head)
    tied = stock._tied_weights_keys.items()
    replaced = {
        found: property(lambda self: getattr(self, name)),
        "_tied_weights_keys": {key.replace(f"{found}.", f"{name}."): other for key, other in tied},
    }
    model.__class__ = type(type(model).__name__, (type(model),), replaced)


def ignored_weights(model: nn.Module) -> list[str]:
    """Patterns of names that old weight files hold in excess, as Transformers lists them."""
    found: Any = model
    return list(found._keys_to_ignore_on_load_unexpected or [])


def set_date(template: str, date: datetime) -> None:
    """Let a chat template that prints today's date print this one.

    Transformers 5 gives templates no functions of the caller, only its own, which reads the clock.
    Each template is compiled once in a process, so the date lasts.
    """
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.globals["strftime_now"] = date.strftime
