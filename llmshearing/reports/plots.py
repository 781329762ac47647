"""The plots of a report. Each takes runs and gives a figure, or None where there is nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llmshearing.reports.runs import HELD_OUT, Run, Series
from llmshearing.reports.style import axis_labels, color, color_scale, legend, new_figure

AXES = ("hidden", "layer", "kv_group", "head", "intermediate")
SHAPE_FIELDS = {"layer": "layers", "head": "heads", "kv_group": "kv_groups"}
SMOOTHED_OVER = 0.03


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
    losses, references = run.group(HELD_OUT), run.group("loading/reference/{}")
    return _domains(losses, references, "held-out loss, nats")


def mixture(run: Run) -> Figure | None:
    """Weight of each domain, and the share of its rows so far as a broken line."""
    weights, shares = run.group("loading/weight/{}"), run.group("loading/share/{}")
    return _domains(weights, shares, "part of the batch")


def expected_sizes(run: Run) -> Figure | None:
    """Expected size of each axis as a part of the source's, and its target as a broken line."""
    expected, targets = run.group("pruning/expected/{}"), run.group("pruning/target/{}")
    if not expected:
        return None
    figure, (plot,) = new_figure()
    shape = run.manifest.get("source", {}).get("shape", {})
    for number, axis in enumerate(axis for axis in AXES if axis in expected):
        series, target = expected[axis], targets.get(axis)
        whole = shape.get(SHAPE_FIELDS.get(axis, axis)) or np.nanmax(
            (target or series).values
        )  # before the first checkpoint
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


def masks(scores: Mapping[str, NDArray]) -> Figure | None:
    """Scores of all units, layers from top to bottom; intermediate units from high to low."""
    axes = [axis for axis in AXES if axis in scores]
    if not axes:
        return None
    tables = {axis: np.atleast_2d(scores[axis]) for axis in axes}
    for axis in ("hidden", "intermediate"):
        if axis in tables:
            tables[axis] = -np.sort(-tables[axis], axis=1)
    heights = [1.0 if len(tables[axis]) == 1 else 2.2 for axis in axes]
    figure, plots = new_figure(len(axes), heights)
    image = None
    for plot, axis in zip(plots, axes, strict=True):
        table = tables[axis]
        image = plot.imshow(
            table, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest"
        )
        plot.set_ylabel(axis, rotation=0, ha="right", va="center")
        plot.grid(visible=False)
        plot.set_yticks([])
        plot.tick_params(labelsize=7.5)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    assert image is not None
    color_scale(figure, image, plots)
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
        if smooth and len(series.values) > 10:
            plot.plot(series.tokens, series.values, color=color(number), alpha=0.25, lw=0.8)
            plot.plot(series.tokens, running_mean(series.values), color=color(number), label=name)
        else:
            marker = "o" if len(series.values) < 30 else ""
            plot.plot(
                series.tokens, series.values, color=color(number), label=name, marker=marker, ms=3
            )
    axis_labels(plot, "tokens", y)
    legend(plot)
    return figure


def _domains(solid: Mapping[str, Series], broken: Mapping[str, Series], y: str) -> Figure | None:
    if not solid:
        return None
    figure, (plot,) = new_figure()
    for number, (name, series) in enumerate(solid.items()):
        marker = "o" if len(series.values) < 30 else ""
        plot.plot(series.steps, series.values, color=color(number), label=name, marker=marker, ms=3)
        if name in broken:
            other = broken[name]
            plot.plot(other.steps, other.values, color=color(number), ls="--", lw=1)
    axis_labels(plot, "step", y)
    legend(plot)
    return figure


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last few values of each point; NaN counts as no value."""
    window = max(1, round(SMOOTHED_OVER * len(values)))
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
