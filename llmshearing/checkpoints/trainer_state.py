"""Reading what a trainer saves without running anything that a file names."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

# What a trainer's checkpoint contains besides tensors and Python's own types: NumPy's generator
# state and Composer's clock.
PLAIN_CLASSES: tuple[Any, ...] = (
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np.empty(0).__reduce__()[0],  # the function that rebuilds a pickled array
)
CLOCK_CLASSES = ("Time", "Timestamp", "TimeUnit")


class _Unread:
    """Stands in for a class of Composer where only tensors are wanted, and keeps nothing."""

    def __new__(cls, *arguments: Any) -> "_Unread":
        del arguments
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        del state


def load_trainer_state(path: str | Path, clock: Any = None) -> dict[str, Any]:
    """Read a full checkpoint, or the `trainer.pt` of a sharded one; tensors are mapped.

    Without `clock`, the module `composer.core.time`, the clock is not read.

    Raises:
        UnpicklingError: it names other classes than a trainer's state contains.
    """
    classes: list[Any] = [
        (getattr(clock, name, _Unread), f"composer.core.time.{name}") for name in CLOCK_CLASSES
    ]
    with torch.serialization.safe_globals([*PLAIN_CLASSES, *classes]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
