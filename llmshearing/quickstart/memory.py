"""Memory of this process and all that it started, as the largest of many samples."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psutil

INTERVAL_SECONDS = 1.0


class MemoryWatch:
    """Samples while the `with` block lasts.

    Attributes:
        peak_gb: the largest sum so far, in GB; files that several processes map count once.
    """

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        while True:
            family = [this, *this.children(recursive=True)]
            self.peak_gb = max(self.peak_gb, used_bytes(family) / 1e9)
            if self._over.wait(INTERVAL_SECONDS):
                return


def used_bytes(family: Sequence[psutil.Process]) -> int:
    """Memory of all together: what each has of its own, and the largest part that one shares.

    The exact figure, the proportional set size, takes a walk over all pages, which slows them.
    """
    own, shared = 0, 0
    for process in family:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        part = getattr(memory, "shared", 0)  # on Linux only
        own, shared = own + memory.rss - part, max(shared, part)
    return own + shared
