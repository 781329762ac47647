"""Run directories as one HTML page that needs nothing besides itself, and its plots as PNG.

Inline SVG takes its colours from the page, so that one picture serves dark and light.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from llmshearing.errors import UserError
from llmshearing.files import write_text
from llmshearing.reports import plots, tables, template
from llmshearing.reports.runs import Run, read_runs
from llmshearing.reports.style import as_png, as_svg
from llmshearing.reports.template import Plot, Table

log = logging.getLogger(__name__)

Drawn = tuple[str, str, Figure | None]

COMPARISONS = (
    ("Held-out loss", "Mean over the domains, in nats per token.", plots.held_out_mean),
    ("Training loss", "Cross entropy of a batch; strong: running mean.", plots.training_loss),
    ("Throughput", "Tokens per second while training.", plots.throughput),
)
OF_A_RUN = (
    ("Held-out loss by domain", "Broken: the reference loss.", plots.held_out),
    ("Mixture", "Weight of each domain; broken: its share of the rows so far.", plots.mixture),
    ("Expected sizes", "Broken: the target, which moves in the warmup.", plots.expected_sizes),
    ("Multipliers", "Lagrange multipliers of the constraint.", plots.multipliers),
)
MASKS_CAPTION = (
    "Score of each unit at step {}: 0 goes, 1 stays. A row is a layer, the first on top; "
    "hidden and intermediate units go from high to low."
)


def write_report(
    run_directories: Sequence[str | Path],
    out: str | Path | None = None,
    title: str = "Runs",
    lead: str = "",
    first: Sequence[Table] = (),
) -> Path:
    """Write the page of one or several runs, finished or still going on.

    Args:
        run_directories: of runs.
        out: the page; `report.html` in the first run's directory where it is not given. The plots
            go to `<name>-plots/` beside it.
        title: of the page.
        lead: a sentence below the title.
        first: tables to stand before all else.

    Returns:
        The page's path.

    Raises:
        UserError: no directory, or one that is no run.
    """
    directories = [Path(path) for path in run_directories]
    if not directories:
        raise UserError("found no run directory, expected one or several")
    runs = read_runs(directories)
    out = Path(out) if out is not None else directories[0] / "report.html"
    if out.is_dir():
        out = out / "report.html"
    folder = out.with_name(f"{out.stem}-plots")
    sections = [
        template.section("Overview", [template.table(table) for table in first]),
        template.section("Comparison" if len(runs) > 1 else "Run", _comparison(runs, folder)),
        *(template.section(run.name, _of_a_run(run, folder)) for run in runs),
    ]
    names = ", ".join(run.name for run in runs)
    write_text(out, template.page(title, lead or names, sections))
    return out


def _comparison(runs: Sequence[Run], folder: Path) -> list[str]:
    drawn = ((name, caption, draw(runs)) for name, caption, draw in COMPARISONS)
    return [
        template.table(tables.overview(runs)),
        template.plots([*_pictures(drawn, folder, "all")]),
    ]


def _of_a_run(run: Run, folder: Path) -> list[str]:
    drawn: list[Drawn] = [(name, caption, draw(run)) for name, caption, draw in OF_A_RUN]
    if run.masks:
        step = max(run.masks)
        drawn.append(("Masks", MASKS_CAPTION.format(step), plots.masks(run.masks[step])))
    return [
        template.plots([*_pictures(drawn, folder, run.name)]),
        template.table(tables.domains(run)),
        template.table(tables.shapes(run)),
        template.folded("Recipe", run.config) if run.config else "",
    ]


def _pictures(drawn: Sequence[Drawn] | Iterator[Drawn], folder: Path, of: str) -> Iterator[Plot]:
    """Figures as SVG for the page and as PNG beside it; what was not drawn is left out."""
    for title, caption, figure in drawn:
        if figure is None:
            continue
        name = re.sub(r"[^a-z0-9]+", "-", f"{of} {title}".lower()).strip("-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(as_png(figure))
        yield Plot(title, caption, as_svg(figure, name))
