"""Masks of a run as heat maps, as counts over time and as tables.

A unit is kept, undecided or off according to its probability to stay.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llmshearing.architecture.axes import Axis
from llmshearing.reports.run_directory import Run
from llmshearing.reports.style import axis_labels, color, color_scale, legend, new_figure
from llmshearing.tables import Table

AXES = tuple(axis.value for axis in Axis)
SURE = 0.95  # a unit is kept from this probability on, and off up to 1 - SURE
# Inches of a heat map: of a single row, of each of several rows, and the limits of their sum.
STRIP, ROW, SMALLEST, LARGEST = 0.34, 0.11, 0.8, 3.2
MARGIN = 0.36

Scores = Mapping[str, NDArray]


def count_units(scores: NDArray) -> tuple[int, int, int]:
    """Units kept, undecided and off in an array of probabilities to stay."""
    kept, off = int((scores >= SURE).sum()), int((scores <= 1 - SURE).sum())
    return kept, scores.size - kept - off, off


def heat_maps(scores: Scores) -> Figure | None:
    """The units of each axis: one row per layer from the top, wide axes sorted from high to low.

    Scores are probabilities to stay by axis, [d] for hidden, [L] for layer, [L, n] for the others.
    """
    tables = {axis: _as_drawn(axis, table) for axis, table in _ordered(scores).items()}
    if not tables:
        return None
    heights = [_height(table) for table in tables.values()]
    height = sum(heights) + MARGIN * (len(tables) + 1)
    figure, plots = new_figure(len(tables), heights, height=height)
    image = None
    for plot, (axis, table) in zip(plots, tables.items(), strict=True):
        image = plot.imshow(
            table, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest"
        )
        _ticks(plot, axis, table)
    assert image is not None
    color_scale(figure, image, plots)
    return figure


def undecided(run: Run) -> Figure | None:
    """Fraction of undecided units of each axis, at each evaluation."""
    if len(run.masks) < 2:
        return None
    figure, (plot,) = new_figure()
    for number, axis in enumerate(_ordered(next(iter(run.masks.values())))):
        open_units = [count_units(scores[axis])[1] for scores in run.masks.values()]
        sizes = [scores[axis].size for scores in run.masks.values()]
        fractions = np.divide(open_units, sizes)
        plot.plot([*run.masks], fractions, color=color(number), label=axis, marker="o", ms=3)
    plot.set_ylim(bottom=0)
    axis_labels(plot, "step", "fraction of units undecided")
    legend(plot)
    return figure


def units_table(run: Run) -> Table:
    """One row per axis: sizes, and how many units the last masks keep, leave open and turn off."""
    header = ("axis", "source", "target", "expected", "kept", "undecided", "off")
    sizes = run.axis_sizes()
    rows = []
    for axis, scores in _ordered(run.last_masks).items():
        source, target = sizes.get(axis, (scores.shape[-1], None))
        rows.append(
            (
                axis + (" (per layer)" if scores.ndim > 1 else ""),
                f"{source:,}",
                "-" if target is None else f"{target:,}",
                f"{scores.sum(-1).mean():,.1f}",
                *(f"{count:,}" for count in count_units(scores)),
            )
        )
    step = max(run.masks, default=0)
    title = f"Units at step {step:,}; kept, undecided and off over all layers"
    return Table(title, header, rows)


def layers_table(run: Run) -> Table:
    """One row per layer: its own probability to stay, and its units kept / undecided / off."""
    columns = {}
    for axis, table in _ordered(run.last_masks).items():
        if axis == "layer":
            columns["stays"] = [f"{score:.2f}" for score in table]
        elif axis != "hidden":
            units = map(count_units, table)
            columns[axis] = [" / ".join(f"{count:,}" for count in counts) for counts in units]
    rows = [(str(layer), *cells) for layer, cells in enumerate(zip(*columns.values(), strict=True))]
    return Table("Layers: units kept / undecided / off", ("layer", *columns), rows)


def _ordered(scores: Scores) -> dict[str, NDArray]:
    return {axis: scores[axis] for axis in AXES if axis in scores}


def _as_drawn(axis: str, scores: NDArray) -> NDArray:
    table = np.atleast_2d(scores)
    return -np.sort(-table, axis=1) if axis in ("hidden", "intermediate") else table


def _height(table: NDArray) -> float:
    return STRIP if len(table) == 1 else float(np.clip(ROW * len(table), SMALLEST, LARGEST))


def _ticks(plot: Axes, axis: str, table: NDArray) -> None:
    plot.set_ylabel("layer" if len(table) > 1 else "", fontsize=9)
    plot.set_title(axis, loc="left", pad=3, fontsize=9)
    plot.grid(visible=False)
    plot.tick_params(labelsize=7.5)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(table) == 1:
        plot.set_yticks([])
    else:
        plot.yaxis.set_major_locator(MaxNLocator(6, integer=True))
