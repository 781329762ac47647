"""Processes that share out the work, and the line that tells how far it is."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llmshearing.errors import UserError

log = logging.getLogger(__name__)

_make: Callable[[], Callable[[Any], Any]] | None = None  # set when a worker process starts


def results(
    make: Callable[..., Callable[[Any], Any]], about: Any, items: Sequence[Any], processes: int
) -> Iterator[Any]:
    """Do `make(about)(item)` for each item and give the results as they come.

    Args:
        make: called once in each process, so that a tokenizer is loaded once.
        about: its argument.
        items: the pieces of work, the longest first.
        processes: number of processes; 1 works in this one.

    Raises:
        UserError: raised by the work, or a process was killed.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        task = make(about) if items else None
        for item in items:
            assert task is not None
            yield task(item)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(make, about))
    try:
        futures = [pool.submit(_do, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for lack of memory: set processes= to fewer "
            "and run the same command again; finished pieces are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(make: Callable[..., Callable[[Any], Any]], about: Any) -> None:
    global _make  # noqa: PLW0603 - a process pool gives no other place for it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Made with the first piece of work, so that an error is that piece's and is told as such.
    _make = functools.cache(functools.partial(make, about))


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    assert _make is not None
    return _make()(item)


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
        """Show the last state."""
        sys.stderr.write(f"{self._line(time.monotonic())}\n")

    def _line(self, now: float) -> str:
        seconds = max(now - self._begin, 1e-9)
        left = (self._total - self._done) * seconds / self._done if self._done else 0.0
        return (
            f"{self._what}: {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, "
            f"{self._done / 1e6 / seconds:,.1f} MB/s, "
            f"{self._counted / 1e6 / seconds:,.2f} M tokens/s, {duration(left)} left   "
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
