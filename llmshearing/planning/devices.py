"""Memory and peak of the devices that a plan can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from llmshearing.architecture.flops import peak_flops
from llmshearing.errors import UserError

GIB = 2**30

# Memory in GiB that a process can allocate. The driver reports less than the name says.
MEMORY = {
    "A100-80GB": 79.1,
    "A100-40GB": 39.4,
    "H100": 79.1,
    "H100 PCIe": 79.1,
    "H100 NVL": 93.1,
    "GH200": 94.5,
    "H200": 139.8,
    "H800": 79.1,
    "H20": 95.6,
    "B200": 178.3,
    "A800": 79.1,
    "A40": 44.4,
    "A30": 23.5,
    "A10G": 22.0,
    "A10": 22.0,
    "L40S": 44.4,
    "L40": 44.4,
    "L4": 22.0,
}
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
            f"--gpu: found {wanted!r}, expected one of {', '.join(MEMORY)}, or cpu; "
            "for any other GPU give --gpu-memory alone, and --run for its speed"
        )
    return Device(known, given or round(MEMORY[known] * GIB), peak_flops(known))


def _known(wanted: str) -> str | None:
    """The table's name: the exact one, else the first that starts with the wanted name."""
    lower = wanted.lower()
    exact = [name for name in MEMORY if name.lower() == lower]
    near = [name for name in MEMORY if name.lower().startswith(lower)]
    return next(iter(exact + near), None)
