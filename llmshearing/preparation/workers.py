"""Processes that share the work."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

from llmshearing.errors import UserError

Maker: TypeAlias = Callable[[Any], Callable[[Any], Any]]


def results(
    processes: int, make: Maker, about: Any, items: Sequence[Any], *, small: bool = False
) -> Iterator[Any]:
    """Compute `make(about)(item)` for each item and yield the results as they come.

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


_work: tuple[Maker, Any]


def _start(make: Maker, about: Any) -> None:
    global _work  # noqa: PLW0603 - set once, before the process does any work
    _work = make, about
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process running when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@functools.cache  # not in `_start`: an exception there would reach nobody
def _worker() -> Callable[[Any], Any]:
    make, about = _work
    return make(about)


def _do(item: Any) -> Any:
    return _worker()(item)
