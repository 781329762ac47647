"""Progress of long work: updated in place on a terminal, a line at intervals elsewhere.

with Progress("evaluate", total=1_000_000, unit="tokens") as progress:
    ...
    progress.advance(2048)
"""

import logging
import time
from pathlib import Path

from rich import progress as rich_progress
from rich.console import Console

REFRESH_SECONDS = 0.2
# All that a command writes to standard error while a bar is up goes through this console, which
# keeps the bar below it.
CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)
IN_BAR = {"in_bar": True}  # `extra` of a log record whose content a bar shows on a terminal


def in_place() -> bool:
    """Whether standard error is a terminal that can rewrite its last line."""
    return CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal


class Progress:
    """Shows how much is done, the rate and the time left, on standard error.

    Args:
        title: what is being done. Like the details it may change while the work goes on.
        total: amount of work in `unit`.
        unit: what is counted; empty for a fraction, which is shown in per cent.
        seconds_between_lines: where standard error is not a terminal. None writes no line and no
            summary, for a caller that logs its own.
        quiet: show nothing, as on ranks other than 0.
    """

    def __init__(
        self,
        title: str,
        total: float,
        unit: str = "",
        *,
        seconds_between_lines: float | None = 10.0,
        quiet: bool = False,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done: float = 0
        self.first: float = 0  # what was done before does not count for the rate
        self.detail, self.left = "", None
        self.seconds_between_lines, self.quiet = seconds_between_lines, quiet
        self.started = self.shown = time.monotonic()
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TextColumn("{task.fields[text]}", markup=False),
            console=CONSOLE,
            auto_refresh=False,  # no thread: training forks
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, text="")

    def __enter__(self) -> "Progress":
        self.started = self.shown = time.monotonic()
        if in_place() and not self.quiet:
            self._bar.start()
            CONSOLE.show_cursor()  # a killed process would leave it hidden
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if in_place() and not self.quiet:
            self._bar.stop()
        if kind is None and self.seconds_between_lines is not None and not self.quiet:
            spent = duration(time.monotonic() - self.started)
            CONSOLE.out(f"{self.title}: {_join(self._amount(), f'in {spent}', self._rate())}")

    def advance(
        self, amount: float, *, title: str | None = None, detail: str | None = None
    ) -> None:
        """Count `amount` more as done."""
        self.update(self.done + amount, title=title, detail=detail)

    def update(
        self,
        done: float,
        *,
        title: str | None = None,
        detail: str | None = None,
        left: float | None = None,
    ) -> None:
        """Set how much is done and show it, unless that was shown a moment ago.

        `left` gives the seconds to the end, for a caller who knows better than the mean rate; the
        rate is then left to `detail`.
        """
        self.done, self.left = done, left
        self.title = self.title if title is None else title
        self.detail = self.detail if detail is None else detail
        between = REFRESH_SECONDS if in_place() else self.seconds_between_lines
        now = time.monotonic()
        if self.quiet or between is None or (now - self.shown < between and done < self.total):
            return
        self.shown = now
        if in_place():
            self._bar.update(self._task, completed=done, description=self.title, text=str(self))
            self._bar.refresh()
        elif done < self.total:
            CONSOLE.out(f"{self.title}: {self}")

    def __str__(self) -> str:
        """Amount, rate, detail and time left."""
        left = self.left
        if left is None and self.done > self.first:
            spent = time.monotonic() - self.started
            left = spent * (self.total - self.done) / (self.done - self.first)
        return _join(
            self._amount(),
            self._rate() if self.left is None else "",
            self.detail,
            "" if left is None else f"{duration(left)} left",
        )

    def _amount(self) -> str:
        if not self.unit:
            return f"{self.done / self.total:.0%}"
        return f"{_number(self.done)}/{_number(self.total)} {self.unit}"

    def _rate(self) -> str:
        if not self.unit or self.done <= self.first:
            return ""
        rate = (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)
        return f"{rate:,.0f} {self.unit}/s" if rate >= 100 else f"{rate:.3g} {self.unit}/s"


class ConsoleHandler(logging.Handler):
    """Writes log records above the bar; on a terminal without those that the bar itself shows."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if not (getattr(record, "in_bar", False) and in_place()):
            CONSOLE.out(self.format(record))


def set_up_log(directory: Path, rank: int) -> None:
    """Log to the console and to `log.txt` from rank 0; other ranks log errors only."""
    logger = logging.getLogger("llmshearing")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    if rank != 0:
        logger.setLevel(logging.ERROR)
        return
    directory.mkdir(parents=True, exist_ok=True)
    logger.setLevel(logging.INFO)
    for handler in (ConsoleHandler(), logging.FileHandler(directory / "log.txt")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
