"""The plots of a report. Each takes runs and gives a figure, or None where there is nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from llmshearing.reports.masks import AXES
from llmshearing.reports.runs import HELD_OUT, Run, Series
from llmshearing.reports.style import INK, axis_labels, color, legend, new_figure

SMOOTHED_OVER, FEWEST_SMOOTHED = 0.03, 5
MOST_POINTS = 1500


def training_loss(runs: Sequence[Run]) -> Figure | None:
    """Cross entropy of training batches, faint as it is and strong as a running mean."""
    found = {run.name: run.series("loss/train/ce") for run in runs}
    return _over_tokens(found, "loss, nats per token", smooth=True)


def held_out_mean(runs: Sequence[Run]) -> Figure | None:
    """Held-out loss, mean over the domains, one line a run."""
    return _over_tokens({run.name: run.mean_held_out() for run in runs}, "mean held-out loss, nats")


def throughput(runs: Sequence[Run]) -> Figure | None:
    """Tokens per second, one line a run."""
    found = {run.name: run.series("throughput/tokens_per_second") for run in runs}
    figure = _over_tokens(found, "tokens per second")
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def held_out(run: Run) -> Figure | None:
    """Held-out loss of each domain, with its reference loss as a broken line."""
    losses, references = run.group(HELD_OUT), run.group("mixture/reference/{}")
    return _domains(losses, references, "held-out loss, nats")


def excess(run: Run) -> Figure | None:
    """Held-out loss of each domain above its reference loss; 0 is reached."""
    references = run.group("mixture/reference/{}")
    above = {}
    for name, losses in run.group(HELD_OUT).items():
        if name in references:
            # `dro` without given references moves them, so each loss meets the one of its time.
            reached = np.interp(losses.steps, references[name].steps, references[name].values)
            above[name] = Series(losses.steps, losses.tokens, losses.values - reached)
    figure = _domains(above, {}, "above reference, nats")
    if figure is not None:
        figure.axes[0].axhline(0, color=INK, lw=0.8)
    return figure


def mixture(run: Run) -> Figure | None:
    """Weight of each domain, and the share of its rows so far as a broken line."""
    weights, shares = run.group("mixture/weight/{}"), run.group("mixture/share/{}")
    return _domains(weights, shares, "part of the batch")


def expected_sizes(run: Run) -> Figure | None:
    """Expected size of each axis as a part of the source's, and its target as a broken line."""
    expected, targets = run.group("pruning/expected/{}"), run.group("pruning/target/{}")
    if not expected:
        return None
    figure, (plot,) = new_figure()
    sizes = run.axis_sizes()
    for number, axis in enumerate(axis for axis in AXES if axis in expected):
        series, target = expected[axis], targets.get(axis)
        # Before the first checkpoint the targets' start is all that tells the source's size.
        whole = sizes[axis][0] if axis in sizes else np.nanmax((target or series).values)
        plot.plot(series.steps, series.values / whole, color=color(number), label=axis)
        if target is not None:
            plot.plot(target.steps, target.values / whole, color=color(number), ls="--", lw=1)
    axis_labels(plot, "step", "part of the source's size")
    legend(plot)
    return figure


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


def _over_tokens(
    found: Mapping[str, Series | None], y: str, *, smooth: bool = False
) -> Figure | None:
    if not any(series is not None for series in found.values()):
        return None
    figure, (plot,) = new_figure()
    for number, (name, series) in enumerate(found.items()):
        if series is None:
            continue
        shown = thinned(series)
        if smooth and len(series.values) > 10:
            plot.plot(shown.tokens, shown.values, color=color(number), alpha=0.25, lw=0.8)
            shown = thinned(Series(series.steps, series.tokens, running_mean(series.values)))
        plot.plot(
            shown.tokens, shown.values, color=color(number), label=name, ms=3, marker=_marker(shown)
        )
    axis_labels(plot, "tokens", y)
    legend(plot)
    return figure


def _domains(solid: Mapping[str, Series], broken: Mapping[str, Series], y: str) -> Figure | None:
    if not solid:
        return None
    figure, (plot,) = new_figure()
    for number, (name, series) in enumerate(solid.items()):
        shown = thinned(series)
        plot.plot(
            shown.steps, shown.values, color=color(number), label=name, ms=3, marker=_marker(shown)
        )
        if name in broken:
            other = thinned(broken[name])
            plot.plot(other.steps, other.values, color=color(number), ls="--", lw=1)
    axis_labels(plot, "step", y)
    legend(plot)
    return figure


def _marker(series: Series) -> str:
    return "o" if len(series.values) < 30 else ""


def thinned(series: Series) -> Series:
    """At most so many points that a line of a long run still draws fast; the last is among them."""
    count = len(series.values)
    if count <= MOST_POINTS:
        return series
    chosen = np.linspace(0, count - 1, MOST_POINTS).round().astype(int)
    return Series(series.steps[chosen], series.tokens[chosen], series.values[chosen])


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last few values of each point; NaN counts as no value."""
    window = max(FEWEST_SMOOTHED, round(SMOOTHED_OVER * len(values)))
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
