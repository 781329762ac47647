"""Reading what Composer saves without running anything that a file says."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core.time import Time, Timestamp, TimeUnit
from torch.torch_version import TorchVersion

# What a trainer checkpoint holds besides tensors and Python's own types: Composer's clock, and
# NumPy's generator state.
TRAINER_CLASSES = [
    Time,
    Timestamp,
    TimeUnit,
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np.empty(0).__reduce__()[0],  # the function that rebuilds a pickled array
]


def load_trainer_state(path: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a full checkpoint, or the `trainer.pt` of a sharded one; nothing in it can run code."""
    with torch.serialization.safe_globals(TRAINER_CLASSES):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
