"""Masks of a run as heat maps, as counts over time, and as tables.

A unit is kept, undecided or off by its probability to stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from llmshearing.architecture.axes import Axis
from llmshearing.reports.runs import Run
from llmshearing.reports.style import axis_labels, color, color_scale, legend, new_figure
from llmshearing.reports.template import Table

AXES = tuple(axis.value for axis in Axis)
PER_LAYER = tuple(axis.value for axis in Axis if axis.per_layer)
SURE = 0.95
# Inches of a heat map: a strip for what all layers share, a row a layer within bounds.
STRIP, ROW, SMALLEST, LARGEST = 0.34, 0.11, 0.8, 3.2
AROUND = 0.36

Scores = Mapping[str, NDArray]


@dataclass(frozen=True)
class Units:
    """Units by what their masks say.

    Attributes:
        kept: probability to stay of 0.95 and more.
        undecided: in between.
        off: 0.05 and less.
    """

    kept: int
    undecided: int
    off: int

    @classmethod
    def of(cls, scores: NDArray) -> Units:
        """Count the units of any array of probabilities."""
        kept, off = int((scores >= SURE).sum()), int((scores <= 1 - SURE).sum())
        return cls(kept, scores.size - kept - off, off)

    def __str__(self) -> str:
        return f"{self.kept:,} / {self.undecided:,} / {self.off:,}"


def heat_maps(scores: Scores) -> Figure | None:
    """Each axis's units: a row a layer, the first on top; wide axes sorted from high to low.

    Args:
        scores: probability to stay by axis, [d] for hidden, [L] for layer, [L, n] for the others.
    """
    axes = [axis for axis in AXES if axis in scores]
    if not axes:
        return None
    tables = {axis: _as_drawn(axis, scores[axis]) for axis in axes}
    heights = [_height(table) for table in tables.values()]
    figure, plots = new_figure(len(axes), heights, height=sum(heights) + AROUND * (len(axes) + 1))
    image = None
    for plot, (axis, table) in zip(plots, tables.items(), strict=True):
        image = plot.imshow(
            table, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest"
        )
        _ticks(plot, axis, table)
    assert image is not None
    color_scale(figure, image, plots)
    return figure


def last_heat_maps(run: Run) -> Figure | None:
    """The heat maps of a run's newest masks."""
    return heat_maps(run.masks[max(run.masks)]) if run.masks else None


def undecided(run: Run) -> Figure | None:
    """Part of each axis's units that are neither kept nor off, at each evaluation."""
    if len(run.masks) < 2:
        return None
    figure, (plot,) = new_figure()
    for number, axis in enumerate(axis for axis in AXES if axis in next(iter(run.masks.values()))):
        parts = [
            Units.of(scores[axis]).undecided / scores[axis].size for scores in run.masks.values()
        ]
        plot.plot([*run.masks], parts, color=color(number), label=axis, marker="o", ms=3)
    plot.set_ylim(bottom=0)
    axis_labels(plot, "step", "part of the units undecided")
    legend(plot)
    return figure


def units_table(run: Run) -> Table:
    """One row an axis: sizes, and how many units the last masks keep, leave open and switch off."""
    header = ("axis", "source", "target", "expected", "kept", "undecided", "off")
    if not run.masks:
        return Table("Units", header, [])
    sizes = run.axis_sizes()
    rows = []
    for axis, scores in _ordered(run.masks[max(run.masks)]).items():
        source, target = sizes.get(axis, (scores.shape[-1], None))
        units = Units.of(scores)
        rows.append(
            (
                axis + (" (of a layer)" if scores.ndim > 1 else ""),
                f"{source:,}",
                "-" if target is None else f"{target:,}",
                f"{scores.sum(-1).mean():,.1f}",
                f"{units.kept:,}",
                f"{units.undecided:,}",
                f"{units.off:,}",
            )
        )
    title = f"Units at step {max(run.masks):,}; kept, undecided and off over all layers"
    return Table(title, header, rows)


def layers_table(run: Run) -> Table:
    """One row a layer: its own probability to stay, and its units kept / undecided / off."""
    scores = _ordered(run.masks[max(run.masks)]) if run.masks else {}
    per_layer = {axis: table for axis, table in scores.items() if table.ndim > 1}
    layers = scores.get("layer")
    header = ("layer", *(["stays"] if layers is not None else []), *per_layer)
    count = len(layers) if layers is not None else max(map(len, per_layer.values()), default=0)
    rows = [
        (
            str(layer),
            *([] if layers is None else [f"{layers[layer]:.2f}"]),
            *(str(Units.of(table[layer])) for table in per_layer.values()),
        )
        for layer in range(count)
    ]
    return Table("Layers: probability to stay; units kept / undecided / off", header, rows)


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
