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


def results(
    processes: int,
    make: Callable[[Any], Callable[[Any], Any]],
    about: Any,
    items: Sequence[Any],
    *,
    small: bool = False,
) -> Iterator[Any]:
    """Do `make(about)(item)` for each item and yield the results as they come.

    Args:
        processes: number of worker processes; 1 works in this process.
        make: called once in each process, so that a tokenizer is loaded once.
        about: its argument.
        items: the pieces of work, the longest first.
        small: whether the work is too little to start processes for.

    Raises:
        UserError: raised by the work, or a process was killed.
    """
    if small or min(processes, len(items)) <= 1:
        yield from map(make(about), items) if items else ()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (make, about)) as pool:
        try:
            for future in as_completed([pool.submit(_do, item) for item in items]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for lack of memory: set processes= "
                "to fewer and run the same command again; finished pieces are kept"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[Callable[[Any], Callable[[Any], Any]], Any]


def _start(make: Callable[[Any], Callable[[Any], Any]], about: Any) -> None:
    global _work  # noqa: PLW0603 - set once, before the process does any work
    _work = make, about
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process running when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@functools.cache  # not in `_start`, where an exception would reach nobody
def _worker() -> Callable[[Any], Any]:
    make, about = _work
    return make(about)


def _do(item: Any) -> Any:
    return _worker()(item)


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
