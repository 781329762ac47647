"""Memory of this process and all that it started, as the largest of many samples."""

from __future__ import annotations

import threading

import psutil

INTERVAL_SECONDS = 2.0  # a sample walks all pages, which costs tens of milliseconds


class MemoryWatch:
    """Samples while the `with` block lasts.

    Attributes:
        peak_gb: the largest sum so far, in GB; shared pages count once where the system tells.
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
            self.peak_gb = max(self.peak_gb, sum(map(used_bytes, family)) / 1e9)
            if self._over.wait(INTERVAL_SECONDS):
                return


def used_bytes(process: psutil.Process) -> int:
    """Proportional set size, or resident set size where there is none; 0 once it has ended."""
    try:
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.rss)
    except psutil.AccessDenied:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
