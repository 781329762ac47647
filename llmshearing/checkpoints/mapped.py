"""Tensors that are views of a mapped file: giving their memory back before the mapping ends."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from llmshearing.checkpoints.tensors import CheckpointTensors

PAGE = mmap.PAGESIZE


def give_back(tensor: Tensor) -> None:
    """Drop the pages of a tensor that views a file; the next access reads them again.

    Without this, everything that was ever read of a file counts as this process's memory until the
    mapping ends. Only for tensors that map a file and were not written to: other memory would be
    lost. Does nothing where the system has no such call.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = tensor.data_ptr()
    end = start + tensor.untyped_storage().nbytes()
    first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if last > first:
        libc = ctypes.CDLL(None, use_errno=True)
        address, length = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
        if libc.madvise(address, length, mmap.MADV_DONTNEED) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class OneAtATime:
    """Reads a checkpoint's tensors so that only the last one is in memory.

    Args:
        tensors: of the checkpoint. What was read before may be read again, but no longer be used.
    """

    def __init__(self, tensors: CheckpointTensors) -> None:
        self._tensors = tensors
        self._last: Tensor | None = None

    def __call__(self, name: str) -> Tensor:
        """The tensor of that name."""
        if self._last is not None and self._tensors.mapped:
            give_back(self._last)
        self._last = None
        self._last = self._tensors.read(name)
        return self._last
