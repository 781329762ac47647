"""Work of several processes whose results outlive a killed one, exchanged through a directory."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError
from llmshearing.files import json_lines, lock_directory, write_text
from llmshearing.progress import Progress

POLL_SECONDS = 0.2


class Ledger:
    """Results by key, in files to which each rank appends lines to its own.

    An incomplete last line, of a process that was killed, does not count, and its work is repeated.

    Args:
        folder: of the files.
        rank: of this process.
        ranks: how many processes share the work.
        kind: what the results are, for the files' names and the progress.
    """

    def __init__(self, folder: Path, rank: int = 0, ranks: int = 1, kind: str = "scores") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rank, self.ranks, self.kind = folder, rank, ranks, kind
        self._own = folder / f"{kind}-{rank}.jsonl"
        if self._own.is_file() and not self._own.read_bytes().endswith(b"\n"):
            self._append(b"\n")

    def read(self) -> dict[str, Any]:
        """All results so far, of all ranks."""
        files = sorted(self.folder.glob(f"{self.kind}-*.jsonl"))
        lines = [line for file in files for line in json_lines(file.read_bytes())]
        return {line["key"]: line["value"] for line in lines}

    def results(
        self,
        title: str,
        keys: Sequence[str],
        measure: Callable[[str], Any],
        *,
        together: bool = False,
        by_first: bool = False,
    ) -> dict[str, Any]:
        """The result of every key, in their order.

        Each rank measures its part of those that have none, and waits for the other ranks.

        Args:
            title: of the work, for its progress.
            keys: what to measure.
            measure: makes a result, a value of JSON.
            together: whether all ranks measure each key together.
            by_first: whether rank 0 measures all of them, so that nothing else disturbs it.
        """
        found = self.read()
        done = sum(key in found for key in keys)
        with Progress(title, len(keys), self.kind, quiet=self.rank > 0) as progress:
            progress.done = progress.first = done
            mine = keys if together else keys[self.rank :: self.ranks]
            if by_first:
                mine = keys if self.rank == 0 else []
            for key in mine:
                if key not in found:
                    value = measure(key)
                    if self.rank == 0 or not together:
                        line = json.dumps({"key": key, "value": value})
                        self._append(line.encode() + b"\n")
                    found = self.read()
                    progress.update(sum(key in found for key in keys), detail=key)
            while any(key not in found for key in keys):
                time.sleep(POLL_SECONDS)
                found = self.read()
                progress.update(sum(key in found for key in keys))
        return {key: found[key] for key in keys}

    def _append(self, content: bytes) -> None:
        with self._own.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def owned(out: Path, rank: int) -> Iterator[None]:
    """Own the output directory; rank 0 holds the lock for all ranks."""
    with lock_directory(out) if rank == 0 else contextlib.nullcontext():
        yield


def check_same(file: Path, what: str, identity: Mapping[str, Any], rank: int) -> None:
    """Record what a directory's results belong to, or compare it with the record there.

    Args:
        file: of the record; rank 0 writes it.
        what: the results, for the message.
        identity: what has to be equal for the work to resume, by name.
        rank: of this process.

    Raises:
        UserError: the results belong to something else.
    """
    now = json.loads(json.dumps(identity))
    was = json.loads(recorded(file, json.dumps(now, indent=2), rank))
    if different := sorted(name for name in now if was.get(name) != now[name]):
        raise UserError(
            f"{file.parent} has a {what} with another {', '.join(different)}: give another --out, "
            f"or the arguments of that {what} to resume it"
        )


def recorded(file: Path, text: str, rank: int) -> str:
    """The content of a file, which rank 0 writes if an earlier start did not."""
    if rank == 0 and not file.exists():
        write_text(file, text)
    wait_for(file)
    return file.read_text(encoding="utf-8")


def wait_for(file: Path) -> None:
    """Wait until rank 0 has written a file."""
    while not file.exists():
        time.sleep(POLL_SECONDS)
