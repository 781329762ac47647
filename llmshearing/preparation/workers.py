"""Processes that share the work."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llmshearing.errors import UserError

Work = Callable[[Any], Any]


def results(
    processes: int, work: Work, items: Sequence[Any], *, small: bool = False
) -> Iterator[Any]:
    """Compute `work(item)` for each item, the longest first, and yield the results as they come.

    Each process gets one copy of `work`. One process, or `small` work, runs in this process. A
    UserError says that the system killed a process.
    """
    if small or min(processes, len(items)) <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (work,)) as pool:
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


_work: Work


def _start(work: Work) -> None:
    global _work  # noqa: PLW0603 - set once, before the process does any work
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process running when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
