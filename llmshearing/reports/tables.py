"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence

from llmshearing.reports.runs import HELD_OUT, Run, Series
from llmshearing.reports.template import Table


def overview(runs: Sequence[Run]) -> Table:
    """One row a run: where it is, what it cost, what it reached."""
    header = ("run", "stage", "step", "tokens", "train loss", "held-out", "tokens/s", "time")
    return Table("Runs", header, [_overview_row(run) for run in runs])


def domains(run: Run) -> Table:
    """One row a domain: losses at the first and last evaluation, reference, weight, share."""
    losses = run.group(HELD_OUT)
    references = run.group("loading/reference/{}")
    weights, shares = run.group("loading/weight/{}"), run.group("loading/share/{}")
    header = (
        "domain",
        "first loss",
        "last loss",
        "reference",
        "first weight",
        "last weight",
        "share",
    )
    rows = [
        (
            name,
            number(series.values[0]),
            number(series.last),
            _last(references.get(name)),
            number(weights[name].values[0], 3) if name in weights else "-",
            _last(weights.get(name), 3),
            _last(shares.get(name), 3),
        )
        for name, series in losses.items()
    ]
    return Table("Domains", header, rows)


def shapes(run: Run) -> Table:
    """Source and target shape of a pruning run, as its manifest tells them."""
    source = run.manifest.get("source", {}).get("shape") or {}
    target = run.manifest.get("target") or {}
    fields = [name for name in source if name in target]
    rows = [(name, f"{source[name]:,}", f"{target[name]:,}") for name in fields]
    return Table("Shape", ("size", "source", "target"), rows)


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash for none."""
    return f"{value:.{digits}f}" if value == value else "-"


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _overview_row(run: Run) -> tuple[str, ...]:
    planned = run.planned_steps
    speed = run.series("throughput/tokens_per_second")
    return (
        run.name,
        "pruning" if run.prunes else "training",
        f"{run.steps:,} of {planned:,}" if planned else f"{run.steps:,}",
        f"{run.tokens:,}",
        _last(run.series("loss/train/ce")),
        _last(run.mean_held_out()),
        "-" if speed is None else f"{speed.last:,.0f}",
        duration(run.seconds),
    )


def _last(series: Series | None, digits: int = 4) -> str:
    return "-" if series is None else number(series.last, digits)
