"""Tensors that are views of a mapped file: where they lie in it, and giving their memory back."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from llmshearing.checkpoints.tensors import CheckpointTensors

PAGE = mmap.PAGESIZE
MAPPINGS = Path("/proc/self/maps")  # of Linux, see proc_pid_maps(5)


def place_of(tensor: Tensor) -> tuple[Path, int] | None:
    """The file that a contiguous tensor is a view of, and the offset of its first byte.

    None where it is a view of no file, or the system does not tell. Only for tensors that were not
    written to: what was changed in memory is not in the file.
    """
    if not MAPPINGS.exists():
        return None
    first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    with MAPPINGS.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            # 7f0c00000000-7f0c80000000 rw-p 00001000 fe:00 12345    /path/of/a file
            addresses, _, offset, _, inode, *name = line.rstrip("\n").split(maxsplit=5)
            start, end = (int(address, 16) for address in addresses.split("-"))
            if start <= first < end:
                path = Path(name[0]) if name and first + size <= end else None
                if path is None or not path.is_file() or path.stat().st_ino != int(inode):
                    return None
                return path, first - start + int(offset, 16)
    return None


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
