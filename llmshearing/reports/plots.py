"""The plots of a report. Each takes runs and returns a figure, or None if there is nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from llmshearing.reports.mask_plots import AXES
from llmshearing.reports.run_directory import HELD_OUT, Run, Series
from llmshearing.reports.style import INK, axis_labels, color, legend, new_figure

SMOOTHED_FRACTION, SHORTEST_WINDOW = 0.03, 5
MOST_POINTS = 1500


def training_loss(runs: Sequence[Run]) -> Figure | None:
    """Cross entropy of training batches: raw values faint, their running mean strong."""
    found = {run.name: run.series("loss/train/ce") for run in runs}
    return _lines(found, "tokens", "loss, nats per token", smooth=True)


def distillation(run: Run) -> Figure | None:
    """Cross entropy, divergence from the teacher and what is trained; None without a teacher."""
    parts = {"cross entropy": "ce", "divergence": "divergence", "total": "total"}
    found = {name: run.series(f"loss/train/{key}") for name, key in parts.items()}
    if found["divergence"] is None:
        return None
    return _lines(found, "step", "loss, nats per token", smooth=True)


def divergence(run: Run) -> Figure | None:
    """Divergence from the teacher on each domain's training rows."""
    found = run.group("distillation/divergence/{}")
    return _lines(found, "step", "divergence, nats per token", smooth=True)


def held_out_mean(runs: Sequence[Run]) -> Figure | None:
    """Mean held-out loss over the domains, one line per run."""
    found = {run.name: run.mean_held_out() for run in runs}
    return _lines(found, "tokens", "mean held-out loss, nats")


def throughput(runs: Sequence[Run]) -> Figure | None:
    """Tokens per second, one line per run."""
    found = {run.name: run.series("throughput/tokens_per_second") for run in runs}
    figure = _lines(found, "tokens", "tokens per second")
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def held_out(run: Run) -> Figure | None:
    """Held-out loss of each domain, with its reference loss as a dashed line."""
    references = run.group("mixture/reference/{}")
    return _lines(run.group(HELD_OUT), "step", "held-out loss, nats", dashed=references)


def excess(run: Run) -> Figure | None:
    """Held-out loss of each domain above its reference loss."""
    references = run.group("mixture/reference/{}")
    above = {}
    for name, losses in run.group(HELD_OUT).items():
        if name in references:
            # The policy `dro` without given references updates them, so take those of each step.
            then = np.interp(losses.steps, references[name].steps, references[name].values)
            above[name] = replace(losses, values=losses.values - then)
    figure = _lines(above, "step", "above reference, nats")
    if figure is not None:
        figure.axes[0].axhline(0, color=INK, lw=0.8)
    return figure


def tasks(run: Run) -> Figure | None:
    """Score of each benchmark task during the run."""
    return _lines(run.group("tasks/{}"), "step", "score, percent")


def mixture(run: Run) -> Figure | None:
    """Weight of each domain, and its share of the rows so far as a dashed line."""
    weights, shares = run.group("mixture/weight/{}"), run.group("mixture/share/{}")
    return _lines(weights, "step", "fraction of the batch", dashed=shares)


def expected_sizes(run: Run) -> Figure | None:
    """Expected size of each axis as a fraction of the source's, and its target dashed."""
    expected, targets = run.group("pruning/expected/{}"), run.group("pruning/target/{}")
    sizes = run.axis_sizes()
    solid, dashed = {}, {}
    for axis in (axis for axis in AXES if axis in expected):
        target = targets.get(axis)
        # Before the first checkpoint, the first target is the best guess of the source's size.
        first = (target or expected[axis]).values
        whole = sizes[axis][0] if axis in sizes else float(np.nanmax(first))
        solid[axis] = replace(expected[axis], values=expected[axis].values / whole)
        if target is not None:
            dashed[axis] = replace(target, values=target.values / whole)
    return _lines(solid, "step", "fraction of the source's size", dashed=dashed, markers=False)


def multipliers(run: Run) -> Figure | None:
    """Both Lagrange multipliers of each axis."""
    kinds = {kind: run.group(f"pruning/multiplier/{{}}/{kind}") for kind in ("linear", "quadratic")}
    if not any(kinds.values()):
        return None
    figure, plots = new_figure(rows=2)
    for plot, (kind, axes) in zip(plots, kinds.items(), strict=True):
        for number, axis in enumerate(axis for axis in AXES if axis in axes):
            plot.plot(axes[axis].steps, axes[axis].values, color=color(number), label=axis)
        axis_labels(plot, "step", kind)
    plots[0].set_xlabel("")
    legend(plots[0])
    return figure


def _lines(
    solid: Mapping[str, Series | None],
    x: str,
    y: str,
    *,
    dashed: Mapping[str, Series] | None = None,
    smooth: bool = False,
    markers: bool = True,
) -> Figure | None:
    """One colored line per name, over steps or tokens."""
    if not any(series is not None for series in solid.values()):
        return None
    figure, (plot,) = new_figure()
    for number, (name, series) in enumerate(solid.items()):
        if series is None:
            continue
        if smooth and len(series.values) > 10:
            raw = thinned(series)
            plot.plot(_over(raw, x), raw.values, color=color(number), alpha=0.25, lw=0.8)
            shown = thinned(replace(series, values=running_mean(series.values)))
        else:
            shown = thinned(series)
        marker = "o" if markers and len(shown.values) < 30 else ""
        plot.plot(
            _over(shown, x), shown.values, color=color(number), label=name, ms=3, marker=marker
        )
        if dashed and name in dashed:
            other = thinned(dashed[name])
            plot.plot(_over(other, x), other.values, color=color(number), ls="--", lw=1)
    axis_labels(plot, x, y)
    legend(plot)
    return figure


def _over(series: Series, x: str) -> NDArray[np.int64]:
    return series.tokens if x == "tokens" else series.steps


def thinned(series: Series) -> Series:
    """At most `MOST_POINTS` points, the last one included, so that a long run draws fast."""
    count = len(series.values)
    if count <= MOST_POINTS:
        return series
    chosen = np.linspace(0, count - 1, MOST_POINTS).round().astype(int)
    return Series(series.steps[chosen], series.tokens[chosen], series.values[chosen])


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the last few values at each point; NaN counts as no value."""
    window = max(SHORTEST_WINDOW, round(SMOOTHED_FRACTION * len(values)))
    known = np.isfinite(values)
    sums, counts = np.cumsum(np.where(known, values, 0.0)), np.cumsum(known)
    for cumulative in (sums, counts):
        cumulative[window:] -= cumulative[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
