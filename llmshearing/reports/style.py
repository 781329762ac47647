"""The look of plots: readable on a phone, in the colors of the page's CSS variables."""

import io
import math
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter

# Readable on white and on near-black alike.
COLORS = ("#3b82c4", "#e07b39", "#3f9b62", "#c4508a", "#8f6fd1",
          "#a88b1e", "#2aa3a3", "#9a7b66", "#d1495b", "#7a8794")  # fmt: skip
# Placeholders in the figure for colors that depend on the page's theme.
INK, GRID = "#1b1f27", "#d8dce3"
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"}
SIZE_INCHES = (4.4, 3.1)
LEGEND_CHARACTERS, HANDLE_CHARACTERS = 50, 5
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.6,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be named a$b$
}


def color(index: int) -> str:
    """The color of the n-th run, domain or axis."""
    return COLORS[index % len(COLORS)]


def new_figure(
    rows: int = 1, heights: list[float] | None = None, height: float = SIZE_INCHES[1]
) -> tuple[Figure, list[Axes]]:
    """A figure of the common width with `rows` plots below each other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained", facecolor="none")
        plots = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    return figure, list(plots)


def legend(plot: Axes) -> None:
    """Put the names above the plot, where they hide no line."""
    handles, labels = plot.get_legend_handles_labels()
    if not handles:
        return
    rows = math.ceil(sum(len(label) + HANDLE_CHARACTERS for label in labels) / LEGEND_CHARACTERS)
    with mpl.rc_context(STYLE):
        plot.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=math.ceil(len(labels) / rows),
            borderaxespad=0.2,
            columnspacing=1.0,
        )


def color_scale(figure: Figure, image: AxesImage, plots: list[Axes]) -> None:
    """Add a color scale from 0 to 1 next to the plots."""
    with mpl.rc_context(STYLE):
        figure.colorbar(image, ax=plots, shrink=0.8, aspect=30, ticks=[0, 0.5, 1])


def axis_labels(plot: Axes, x: str, y: str) -> None:
    """Name the axes; show large numbers as 1k, 1M."""
    plot.set_xlabel(x, fontsize=STYLE["axes.labelsize"])
    plot.set_ylabel(y, fontsize=STYLE["axes.labelsize"])
    plot.xaxis.set_major_formatter(EngFormatter(sep=""))


def as_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for a page; its ids start with `name`, unique in the page."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.set_layout_engine("none")  # the layout is done; again would double the time
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Group ids repeat in every figure; ids of clip paths depend on memory addresses.
    text = re.sub(r'(<g id=")', rf"\g<1>{name}-", text)
    for number, clip in enumerate(dict.fromkeys(re.findall(r'<clipPath id="(\w+)"', text))):
        text = re.sub(rf"\b{clip}\b", f"{name}-clip-{number}", text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG image on white."""
    buffer = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    canvas.print_figure(buffer, dpi=180, format="png")
    figure.set_facecolor("none")
    return buffer.getvalue()
