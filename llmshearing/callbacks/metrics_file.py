"""A run's metrics as lines of JSON, which the report and any script can read during the run."""

import json
import math
import time
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.files import json_lines, write_text

# Steps with one of these are always written: updates of the mixture, and benchmark scores.
RARE = ("mixture/weight/", "tasks/")


class MetricsFile(LoggerDestination):
    """Writes `metrics.jsonl`: per logged step `{"batch", "tokens", "seconds", "metrics"}`.

    Steps at the interval, with an evaluation, an update of the mixture or benchmark scores are
    written. A resumed run drops the lines after its checkpoint and appends.
    """

    def __init__(self, path: Path, interval: int, sequence_length: int) -> None:
        self.path, self.interval, self.sequence_length = path, interval, sequence_length
        self.pending: dict[str, float] = {}
        self.start = time.monotonic()
        self.evaluated = False

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Collect until the step ends."""
        for name, value in metrics.items():
            if name.startswith("time/"):
                continue  # Composer's clock, which `batch` and `tokens` repeat
            number = float(value)
            self.pending[name] = number if math.isfinite(number) else math.nan

    def fit_start(self, state: State, logger: Logger) -> None:
        """Drop the lines that a killed run wrote after its checkpoint."""
        if dist.get_global_rank() != 0 or not self.path.is_file():
            return
        batch = state.timestamp.batch.value
        lines = json_lines(self.path.read_bytes()) if batch > 0 else []
        kept = [line for line in lines if line["batch"] <= batch]
        if kept:
            self.start -= kept[-1]["seconds"]
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Write the step now, whatever the interval."""
        self.evaluated = True
        self._write(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Write the last step; nothing more can be logged for it."""
        self.flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write the last step."""
        self._write(state)

    def flush(self, state: State) -> None:
        """Write the step if it is due. Also called before its checkpoint is saved.

        A run that resumes from the checkpoint does not repeat the step.
        """
        updated = any(name.startswith(RARE) for name in self.pending)
        if state.timestamp.batch.value % self.interval == 0 or self.evaluated or updated:
            self._write(state)
        self.pending.clear()
        self.evaluated = False

    def _write(self, state: State) -> None:
        if not self.pending or dist.get_global_rank() != 0:
            return
        line = {
            "batch": state.timestamp.batch.value,
            "tokens": state.timestamp.sample.value * self.sequence_length,
            "seconds": round(time.monotonic() - self.start, 3),
            "metrics": self.pending,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.pending = {}
