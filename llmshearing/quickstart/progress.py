"""Where the whole path is, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from llmshearing.files import json_lines
from llmshearing.quickstart.stages import Stage
from llmshearing.reports.tables import duration

LINE_EVERY_SECONDS = 20.0
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Training:
    """A training stage as its run directory tells it.

    Attributes:
        step: the newest that was logged.
        steps: of the run.
        loss: of the newest batch that has one, or None.
        tokens_per_second: likewise.
    """

    step: int
    steps: int
    loss: float | None
    tokens_per_second: float | None

    @classmethod
    def read(cls, directory: Path) -> Training | None:
        """Read a run directory; None before its first line."""
        config, metrics = directory / "config.yaml", directory / "metrics.jsonl"
        if not (config.is_file() and metrics.is_file()):
            return None
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
            lines = [line for line in json_lines(file.read()) if "metrics" in line]
        steps = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]["duration"]
        if not lines:
            return None
        return cls(
            lines[-1]["batch"],
            int(steps.removesuffix("ba")),
            _newest(lines, "loss/train/ce"),
            _newest(lines, "throughput/tokens_per_second"),
        )

    def __str__(self) -> str:
        parts = [f"step {self.step}/{self.steps}"]
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        return "  ".join(parts)


class PathProgress:
    """A bar on a terminal, a line now and then elsewhere.

    Time left is what the stages ahead were planned to take, times what the ones behind took
    against their plan.

    Args:
        stages: of the path.
        console: where to draw.
    """

    def __init__(self, stages: Sequence[Stage], console: Console) -> None:
        self.stages, self.console = list(stages), console
        self.planned = sum(stage.seconds for stage in stages)
        self.behind = 0.0  # planned seconds of what is done
        self.worked = self.worked_planned = 0.0  # of what was done now, not skipped
        self.started = time.monotonic()
        self.spoke = -LINE_EVERY_SECONDS
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%  {task.fields[left]}"),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=self.planned, left="")

    def __enter__(self) -> PathProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def skip(self, stage: Stage) -> None:
        """A stage that an earlier attempt finished."""
        self.behind += stage.seconds

    def begin(self, stage: Stage) -> None:
        """A stage starts."""
        self.started = time.monotonic()
        self.tick(stage)

    def tick(self, stage: Stage) -> None:
        """Look where the running stage is, and show it."""
        training = Training.read(stage.run_directory) if stage.run_directory else None
        elapsed = time.monotonic() - self.started
        part = min(elapsed / stage.seconds, 0.99)
        if stage.run_directory:
            part = training.step / training.steps if training else 0.0
        left = self.seconds_left(stage, part, elapsed)
        what = f"{stage.title}{f'  {training}' if training else ''}"
        position = f"[{self.stages.index(stage) + 1}/{len(self.stages)}]"
        told = f"{duration(left)} left"
        self.bar.update(
            self.task,
            description=f"\\{position} {what}",
            completed=self.behind + part * stage.seconds,
            left=told,
        )
        if not self.console.is_terminal and time.monotonic() - self.spoke >= LINE_EVERY_SECONDS:
            self.spoke = time.monotonic()
            percent = 100 * (self.behind + part * stage.seconds) / self.planned
            self.console.out(f"{position} {what}  {percent:.0f}% of all, {told}", highlight=False)

    def end(self, stage: Stage) -> None:
        """A stage is done."""
        self.worked += time.monotonic() - self.started
        self.worked_planned += stage.seconds
        self.behind += stage.seconds

    def seconds_left(self, stage: Stage, part: float, elapsed: float) -> float:
        """Seconds until the path's end.

        Args:
            stage: the one running.
            part: of it that is done, 0 to 1.
            elapsed: seconds in it.
        """
        planned = self.worked_planned + part * stage.seconds
        slow = (self.worked + elapsed) / planned if planned > 5 else 1.0
        return max(0.0, self.planned - self.behind - part * stage.seconds) * slow


def _newest(lines: Sequence[dict], name: str) -> float | None:
    return next(
        (line["metrics"][name] for line in reversed(lines) if name in line["metrics"]), None
    )
