"""Processes that share out the work, and the line that tells how far it is."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError

log = logging.getLogger(__name__)


class Pool:
    """Processes that share out work: started with the first of it, and kept for what follows.

    Args:
        processes: their number; 1 works in this one.
        folder: where a file tells them what a kind of work is about.
    """

    def __init__(self, processes: int, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def results(
        self,
        make: Callable[[Any], Callable[[Any], Any]],
        about: Any,
        items: Sequence[Any],
        *,
        small: bool = False,
    ) -> Iterator[Any]:
        """Do `make(about)(item)` for each item and give the results as they come.

        Args:
            make: called once in each process, so that a tokenizer is loaded once.
            about: its argument.
            items: the pieces of work, the longest first.
            small: whether it is too little work for other processes.

        Raises:
            UserError: raised by the work, or a process was killed.
        """
        if small or min(self._processes, len(items)) <= 1:
            yield from map(make(about), items) if items else ()
            return
        if not self._pool:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, initializer=_start)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".task.") as task:
            task.write(pickle.dumps((make, about)))
            task.flush()
            try:
                futures = [self._pool.submit(_do, task.name, item) for item in items]
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, most likely for lack of memory: set processes= "
                    "to fewer and run the same command again; finished pieces are kept"
                ) from None


def _start() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@functools.lru_cache(maxsize=1)  # of the work under way; an error is not kept
def _task(path: str) -> Callable[[Any], Any]:
    make, about = pickle.loads(Path(path).read_bytes())  # noqa: S301 - written by the parent
    return make(about)


def _do(path: str, item: Any) -> Any:
    return _task(path)(item)


class Progress:
    """One line on standard error: done, rate and time left; now and then where it is no terminal.

    Args:
        what: what is under way.
        total: its size in bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = self._counted = 0
        self._begin = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def add(self, size: int, tokens: int) -> None:
        """Count `size` bytes of the whole and the tokens made of them."""
        self._done += size
        self._counted += tokens
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._live else 10):
            self._shown = now
            end = "\r" if self._live else "\n"
            sys.stderr.write(f"{self._line(now)}{end}")
            sys.stderr.flush()

    def close(self) -> None:
        """Show what was done, and in what time."""
        now = time.monotonic()
        sys.stderr.write(f"{self._rates(now)}, in {duration(now - self._begin)}      \n")

    def _line(self, now: float) -> str:
        spent = now - self._begin
        left = (self._total - self._done) * spent / self._done if self._done else 0.0
        return f"{self._rates(now)}, {duration(left)} left   "

    def _rates(self, now: float) -> str:
        seconds = max(now - self._begin, 1e-9)
        return (
            f"{self._what}: {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, "
            f"{self._done / 1e6 / seconds:,.1f} MB/s, "
            f"{self._counted / 1e6 / seconds:,.2f} M tokens/s"
        )


def duration(seconds: float) -> str:
    """Give a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {rest:02} s"
        if minutes
        else f"{rest} s"
    )
