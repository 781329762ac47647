"""What a search writes: a table, a plot, all results as JSON, and a recipe for the best shape."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from llmshearing.architecture.space import memory_bytes
from llmshearing.architecture.target import SIZES
from llmshearing.files import write_bytes, write_json, write_text
from llmshearing.pruning.scores import save_scores
from llmshearing.reports.style import GRID, INK, as_png, axis_labels, color, legend, new_figure
from llmshearing.search.search import Found
from llmshearing.tables import Table

TABLE, RESULTS, PLOT = "table.txt", "results.json", "shapes.png"
RECIPE, BEST_SCORES = "best.yaml", "best.safetensors"


Recovered = Sequence[Mapping[str, float]]  # losses after each round of recovery, best first


def write_results(found: Found, recovered: Recovered, recipe: dict[str, Any], out: Path) -> Table:
    """Write all results of a search to `out`.

    `recipe` is that of a run which starts from the best shape; its target and scores are filled in.

    Returns:
        The table.
    """
    table = as_table(found, recovered)
    write_text(out / TABLE, f"{table}\n")
    write_json(out / RESULTS, as_dict(found, recovered))
    write_bytes(out / PLOT, as_png(plot(found, recovered)))
    best = found.candidates[ranking(found, recovered)[0]]
    source = {"model": str(found.source.path), "made by": "llmshearing search"}
    save_scores(out / BEST_SCORES, best.scores, source)
    recipe = {
        **recipe,
        "target": {name: getattr(best.shape, name) for name in SIZES},
        "pruning": {"method": "oneshot", "importance": str((out / BEST_SCORES).absolute())},
    }
    comment = f"# The best shape of a search, {best.name}.\n"
    write_text(out / RECIPE, comment + yaml.safe_dump(recipe, sort_keys=False))
    return table


def ranking(found: Found, recovered: Recovered) -> list[str]:
    """Names of the candidates: those that were trained longest first, then by their loss."""
    names = [name for one in reversed(recovered) for name in one]
    return list(dict.fromkeys([*names, *found.ranking]))


def correlations(found: Found, recovered: Recovered) -> list[dict[str, float | None]]:
    """Spearman's correlation of both scores after the cut with the loss after each round."""
    return [
        {
            score: _spearman([getattr(found.scores[n], score) for n in one], list(one.values()))
            for score in ("loss", "divergence")
        }
        for one in recovered
    ]


def _spearman(before: Sequence[float], after: Sequence[float]) -> float | None:
    """None for fewer than three values, whose order says nothing."""
    found: Any = spearmanr(before, after) if len(before) > 2 else None
    return None if found is None else float(found.statistic)


def as_dict(found: Found, recovered: Recovered) -> dict[str, Any]:
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
                "recovered": [one.get(name) for one in recovered],
            }
            for name in ranking(found, recovered)
        ],
        "correlations": correlations(found, recovered),
    }


def as_table(found: Found, recovered: Recovered) -> Table:
    """A row for each candidate, the best first."""
    source = found.source.table
    with_memory = found.space.memory is not None
    rows = []
    for place, name in enumerate(ranking(found, recovered), start=1):
        shape, score = found.candidates[name].shape, found.scores[name]
        cells = [str(place), *(f"{getattr(shape, size):,}" for size in SIZES)]
        cells += [f"{source.parameter_count(shape):,}"]
        if with_memory:
            cells += [f"{memory_bytes(source, shape, found.space.serving) / 1e6:,.1f}"]
        cells += [f"{score.loss:.4f}", f"{score.divergence:.4f}"]
        rows.append(cells + [f"{one[name]:.4f}" if name in one else "" for one in recovered])
    header = ["rank", *SIZES, "parameters", *(["MB"] if with_memory else []), "loss", "divergence"]
    header += [f"round {number}" for number in range(1, len(recovered) + 1)]
    return Table("", header, rows, _notes(found) + _recovery_notes(found, recovered))


def _recovery_notes(found: Found, recovered: Recovered) -> list[str]:
    notes = []
    for number, (one, values) in enumerate(
        zip(recovered, correlations(found, recovered), strict=True), start=1
    ):
        known = [f"{name} {value:.2f}" for name, value in values.items() if value is not None]
        shown = f"; Spearman's correlation with {', '.join(known)}" if known else ""
        notes.append(f"round {number}: loss of {len(one)} shapes after recovery{shown}")
    return notes


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


def plot(found: Found, recovered: Recovered) -> Figure:
    """Loss against parameters, with the shapes that no smaller one beats joined by a line.

    Losses after the last training of a shape are shown as triangles.
    """
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
    trained = {name: loss for one in recovered for name, loss in one.items()}
    if trained:
        x = [points[name][0] for name in trained]
        axes.scatter(x, list(trained.values()), s=18, color=INK, marker="^", label="recovered")
    axis_labels(axes, "parameters", "held-out loss, nats")
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
