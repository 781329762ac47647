"""Results that outlive a killed process, and by which the ranks of a search exchange their work."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmshearing.files import json_lines
from llmshearing.progress import Progress

POLL_SECONDS = 0.2


class Ledger:
    """Results by key, in files to which each rank appends lines to its own.

    An incomplete last line, of a process that was killed, does not count, and its work is repeated.

    Args:
        folder: of the files.
        rank: of this process.
        ranks: how many processes share the work.
    """

    def __init__(self, folder: Path, rank: int = 0, ranks: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self._own = folder / f"scores-{rank}.jsonl"
        if self._own.is_file() and not self._own.read_bytes().endswith(b"\n"):
            self._append(b"\n")

    def read(self) -> dict[str, Any]:
        """All results so far, of all ranks."""
        files = sorted(self.folder.glob("scores-*.jsonl"))
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
        with Progress(title, len(keys), "scores", quiet=self.rank > 0) as progress:
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
