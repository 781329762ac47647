"""No silent hang: each activity of a rank has a time limit, after which the rank prints its stacks.

A rank that hangs blocks all others in their next collective, so every rank exceeds its limit at
about the same time. Each writes the stacks of its threads to standard error and to
`RUN/stacks/rank<N>.txt`, waits a moment for the others, and exits with `RUN_ERROR_STATUS`. A rank
that sees the stacks of another writes its own at once.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from llmshearing.errors import RUN_ERROR_STATUS

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two checks
GRACE_SECONDS = 10.0  # to wait for the stacks of the other ranks
STANDARD_ERROR = 2


class Watchdog:
    """Watches one rank from a thread, within its `with` block; outside it only logs times.

    A Python thread cannot run while native code in another holds the interpreter. For that case
    faulthandler, which does not need the interpreter, does the same a little later.
    """

    def __init__(self, directory: Path, rank: int = 0, ranks: int = 1) -> None:
        self.stacks, self.rank, self.ranks = directory / "stacks", rank, ranks
        self.busy_with, self.since, self.limit = "start", time.monotonic(), float("inf")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._old: dict[str, int] = {}

    def __enter__(self) -> "Watchdog":
        """Start watching."""
        self._old = self._found()  # stacks of earlier runs
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        assert self._thread is not None
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        self._thread = None

    def enter(self, what: str, limit: float) -> None:
        """Set the current activity, e.g. `step 17`, and the seconds that it may take."""
        self.busy_with, self.since, self.limit = what, time.monotonic(), limit
        if self._thread is not None:
            patience = limit + POLL_SECONDS + 2 * GRACE_SECONDS
            faulthandler.dump_traceback_later(patience, exit=True, file=STANDARD_ERROR)

    @contextlib.contextmanager
    def phase(self, what: str, limit: float) -> Iterator[None]:
        """Watch one part of the start, and log its time."""
        self.enter(what, limit)
        begun = time.monotonic()
        yield
        log_phase(what, time.monotonic() - begun)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            elapsed = time.monotonic() - self.since
            if elapsed > self.limit:
                self._end(
                    f"has been in {self.busy_with} for {elapsed:.0f} s, limit {self.limit:g} s"
                )
            others = self._others()
            if others:
                self._end(
                    f"has been in {self.busy_with} for {elapsed:.0f} s; {_named(others)} hangs"
                )

    def _end(self, why: str) -> None:
        """Write the stacks, wait for those of the other ranks, and exit."""
        text = (
            f"rank {self.rank} of {self.ranks} (process {os.getpid()} on {socket.gethostname()}) "
            f"{why}; its stacks at {datetime.now():%Y-%m-%d %H:%M:%S}:"
        )
        os.write(STANDARD_ERROR, f"{text}\n".encode())
        faulthandler.dump_traceback(STANDARD_ERROR, all_threads=True)
        with contextlib.suppress(OSError):  # a full disk must not stop the exit
            self.stacks.mkdir(parents=True, exist_ok=True)
            with (self.stacks / f"rank{self.rank}.txt").open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        deadline = time.monotonic() + GRACE_SECONDS
        while len(self._others()) < self.ranks - 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        missing = sorted(set(range(self.ranks)) - set(self._others()) - {self.rank})
        text = f"rank {self.rank} ends the run; the stacks of all ranks are in {self.stacks}"
        if missing:
            text += (
                f", except {_named(missing)}: stopped, dead, or on a machine that does not share "
                "this folder"
            )
        os.write(STANDARD_ERROR, f"{text}\n".encode())
        os._exit(RUN_ERROR_STATUS)

    def _others(self) -> list[int]:
        """The other ranks that have written their stacks since the start."""
        ranks = [
            int(name.removeprefix("rank").removesuffix(".txt"))
            for name, written in self._found().items()
            if written != self._old.get(name)
        ]
        return sorted(rank for rank in ranks if rank != self.rank)

    def _found(self) -> dict[str, int]:
        """When each rank last wrote its stacks."""
        found = {}
        for path in self.stacks.glob("rank*.txt"):
            with contextlib.suppress(OSError):
                found[path.name] = path.stat().st_mtime_ns
        return found


def log_phase(what: str, seconds: float) -> None:
    """Log how long a part of the start took."""
    log.info("start: %s took %.1f s", what, seconds)


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
