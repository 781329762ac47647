"""Start the ranks of a run as forked processes, and kill them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import recording
from runs import start_ranks

DEADLINE_SECONDS = 600  # a machine may be busy


class Ranks:
    """The processes of one run.

    Args:
        count: how many.
        directory: of the run; what the processes print goes next to it.
        recipe: the file.
        overrides: `key=value` with dotted keys.
    """

    def __init__(self, count: int, directory: Path, recipe: Path, *overrides: str) -> None:
        self.directory, self.logs = directory, Path(f"{directory}-logs")
        arguments = [str(recipe), f"run.directory={directory}", *overrides]
        self.processes = start_ranks(count, self.logs, arguments, run=recording.main)
        self.begun = time.monotonic()

    def finish(self, status: int = 0) -> None:
        """Wait until all ranks have ended."""
        for process in self.processes:
            process.join(timeout=DEADLINE_SECONDS)
        assert [p.exitcode for p in self.processes] == [status] * len(self.processes), self.tail()

    def wait_for(self, condition: Callable[[], bool], pause: float = 0.005) -> None:
        """Poll until the condition holds; all ranks must be alive."""
        while not condition():
            assert all(process.is_alive() for process in self.processes), self.tail()
            assert time.monotonic() - self.begun < DEADLINE_SECONDS, self.tail()
            time.sleep(pause)

    def step(self) -> int:
        """The last step that rank 0 started."""
        path = self.directory / "seen-0.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else -1

    @contextmanager
    def stopped(self) -> Iterator[list[psutil.Process]]:
        """Suspend all ranks and their workers; those not killed resume afterwards."""
        family = [psutil.Process(process.pid) for process in self.processes]
        family += [child for member in family for child in member.children(recursive=True)]
        for member in family:
            member.suspend()
        yield family
        for member in family:
            if member.is_running():
                member.resume()

    def kill(self) -> None:
        """Kill all ranks and workers at the same time, so that none reacts to another's end."""
        with self.stopped() as family:
            for member in family:
                member.kill()
        self.join()
        psutil.wait_procs(family, timeout=10)

    def kill_one(self, rank: int) -> None:
        """Kill one rank; without a launcher the others must end by themselves."""
        self.processes[rank].kill()
        self.join()
        others = [p.exitcode for n, p in enumerate(self.processes) if n != rank]
        assert all(others), f"a rank ended well without its partner: {self.tail()}"

    def join(self) -> None:
        """Wait until all processes are gone."""
        for process in self.processes:
            process.join(timeout=DEADLINE_SECONDS)
            assert not process.is_alive(), self.tail()

    def tail(self) -> str:
        """The end of the ranks' output."""
        logs = sorted(self.logs.glob("log-*.txt"))
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs)
