"""Memory and peak of the devices that a plan can be made for."""

from dataclasses import dataclass

from llmshearing.architecture.flops import GPUS
from llmshearing.errors import UserError

GIB = 2**30
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """A kind of GPU, or the processor."""

    name: str  # as in the table, or `cpu`
    memory: int | None  # bytes that a process can use; None if no limit is known
    peak: float | None  # dense bf16 operations per second; None if unknown

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != CPU


def device_of(name: str | None, memory_gb: float | None = None) -> Device:
    """The device that a user names.

    Args:
        name: part of a name of the table, `cpu`, or None for an unnamed GPU of the given memory.
        memory_gb: its memory in GiB, instead of the table's.

    Raises:
        UserError: no such name, or an impossible amount of memory.
    """
    if memory_gb is not None and not memory_gb > 0:
        raise UserError(f"--gpu-memory: found {memory_gb:g}, expected GiB per GPU, more than 0")
    given = None if memory_gb is None else round(memory_gb * GIB)
    if name is None and given is not None:
        return Device("unnamed GPU", given, None)
    wanted = name or "A100-80GB"
    if wanted.lower() == CPU:
        return Device(CPU, given, None)
    known = _known(wanted)
    if known is None:
        raise UserError(
            f"--gpu: found {wanted!r}, expected one of {', '.join(GPUS)}, or cpu; "
            "for any other GPU give --gpu-memory alone, and --run for its speed"
        )
    gpu = GPUS[known]
    return Device(known, given or round(gpu.memory * GIB), gpu.peak)


def _known(wanted: str) -> str | None:
    """The table's name: the exact one, else the first that starts with the wanted name."""
    lower = wanted.lower()
    exact = [name for name in GPUS if name.lower() == lower]
    near = [name for name in GPUS if name.lower().startswith(lower)]
    return next(iter(exact + near), None)
