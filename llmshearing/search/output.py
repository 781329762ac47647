"""What a search writes: a table, a plot, all results as JSON, and a recipe for the best shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from llmshearing.architecture.space import memory_bytes
from llmshearing.architecture.target import SIZES
from llmshearing.files import write_bytes, write_json, write_text
from llmshearing.pruning.scores import save_scores
from llmshearing.reports.style import GRID, INK, as_png, axis_labels, color, legend, new_figure
from llmshearing.search.search import Found
from llmshearing.tables import Table

TABLE, RESULTS, PLOT = "table.txt", "results.json", "shapes.png"
RECIPE, BEST_SCORES = "best.yaml", "best.safetensors"


def write_results(found: Found, recipe: dict[str, Any], out: Path) -> Table:
    """Write all results of a search.

    Args:
        found: the result.
        recipe: of a run that starts from the best shape; its target and scores are filled in.
        out: the directory.

    Returns:
        The table.
    """
    table = as_table(found)
    write_text(out / TABLE, f"{table}\n")
    write_json(out / RESULTS, as_dict(found))
    write_bytes(out / PLOT, as_png(plot(found)))
    best = found.candidates[found.ranking[0]]
    source = {"model": str(found.source.path), "made by": "llmshearing search"}
    save_scores(out / BEST_SCORES, best.scores, source)
    recipe = {
        **recipe,
        "target": {name: getattr(best.shape, name) for name in SIZES},
        "pruning": {"importance": str((out / BEST_SCORES).absolute())},
    }
    comment = f"# The best shape of a search, {best.name}.\n"
    write_text(out / RECIPE, comment + yaml.safe_dump(recipe, sort_keys=False))
    return table


def as_dict(found: Found) -> dict[str, Any]:
    """All results as plain values, the best shape first."""
    count = found.source.table.parameter_count
    return {
        "model": str(found.source.path),
        "shapes": {
            "in the grid": len(found.space.grid),
            "within the budgets": found.within,
            "not within another": found.largest,
            "scored": len(found.scores),
        },
        "parent": dataclasses.asdict(found.parent),
        "layers": {depth: dataclasses.asdict(one) for depth, one in found.depths.items()},
        "candidates": [
            {
                "name": name,
                "shape": dataclasses.asdict(found.candidates[name].shape),
                "parameters": count(found.candidates[name].shape),
                **dataclasses.asdict(found.scores[name]),
            }
            for name in found.ranking
        ],
    }


def as_table(found: Found) -> Table:
    """A row for each candidate, the best first."""
    source = found.source.table
    with_memory = found.space.memory is not None
    rows = []
    for place, name in enumerate(found.ranking, start=1):
        shape, score = found.candidates[name].shape, found.scores[name]
        cells = [str(place), *(f"{getattr(shape, size):,}" for size in SIZES)]
        cells += [f"{source.parameter_count(shape):,}"]
        if with_memory:
            cells += [f"{memory_bytes(source, shape, found.space.serving) / 1e6:,.1f}"]
        rows.append([*cells, f"{score.loss:.4f}", f"{score.divergence:.4f}"])
    header = ["rank", *SIZES, "parameters", *(["MB"] if with_memory else []), "loss", "divergence"]
    return Table("", header, rows, _notes(found))


def _notes(found: Found) -> list[str]:
    grid = " x ".join(f"{len(values)} {axis.value}" for axis, values in found.space.values.items())
    scored = len(found.scores)
    how = "all of them scored" if scored == found.largest else f"{scored} scored, evenly spaced"
    depths = [
        f"{depth} layers: without {_ranges(one.removed) or 'none'}, loss {one.loss:.4f}"
        for depth, one in found.depths.items()
    ]
    return [
        f"parent: loss {found.parent.loss:.4f}; divergence: KL(parent || candidate)",
        f"shapes: {len(found.space.grid):,} in the grid ({grid}), {found.within:,} within the "
        f"budgets, {found.largest:,} of them not within another one, {how}",
        *depths,
    ]


def _ranges(layers: Sequence[int]) -> str:
    """Layer numbers as `3, 5-9`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def plot(found: Found) -> Figure:
    """Loss against parameters, with the shapes that no smaller one beats joined by a line."""
    figure, (axes,) = new_figure()
    count = found.source.table.parameter_count
    points = {n: (count(found.candidates[n].shape), found.scores[n].loss) for n in found.scores}
    depths = sorted({found.candidates[name].shape.layers for name in points})
    for number, depth in enumerate(depths):
        mine = [points[n] for n in points if found.candidates[n].shape.layers == depth]
        x, y = zip(*mine, strict=True)
        axes.scatter(x, y, s=18, color=color(number), label=f"{depth} layers", zorder=2)
    front = pareto_front(list(points.values()))
    axes.plot(*zip(*front, strict=True), color=INK, lw=1, zorder=1, label="Pareto front")
    axis_labels(axes, "parameters", "held-out loss after the cut, nats")
    axes.grid(color=GRID)
    legend(axes)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (size, loss) that no point of at most their size beats, by size."""
    front: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front
