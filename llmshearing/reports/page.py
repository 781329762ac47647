"""Run directories as one HTML page that needs nothing besides itself, and its plots as PNG.

Inline SVG takes its colours from the page, so that one picture serves dark and light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from llmshearing.errors import UserError
from llmshearing.files import write_bytes, write_text
from llmshearing.reports import masks, plots, tables, template
from llmshearing.reports.runs import Run, read_runs
from llmshearing.reports.style import as_png, as_svg
from llmshearing.reports.template import Plot, Table

Drawn = tuple[str, str, Figure | None]

COMPARISONS = (
    ("Held-out loss", "Mean over the domains, in nats per token.", plots.held_out_mean),
    ("Training loss", "Cross entropy of a batch; strong: running mean.", plots.training_loss),
    ("Throughput", "Tokens per second while training.", plots.throughput),
)
MASKS_CAPTION = (
    "Probability of each unit to stay, at the last evaluation. A row is a layer, the first on top; "
    "hidden and intermediate units are sorted from high to low."
)
OF_A_RUN = (
    ("Held-out loss by domain", "Broken: the reference loss, where there is one.", plots.held_out),
    ("Above reference", "What is left to each domain's reference loss.", plots.excess),
    ("Mixture", "Weight of each domain; broken: its share of the rows so far.", plots.mixture),
    ("Expected sizes", "Broken: the target, which moves in the warmup.", plots.expected_sizes),
    ("Masks", MASKS_CAPTION, masks.last_heat_maps),
    ("Multipliers", "Lagrange multipliers of the constraint.", plots.multipliers),
    ("Undecided units", "Probability to stay between 0.05 and 0.95.", masks.undecided),
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
        out: the page, or a folder for it; `report.html` in the first run's directory where it is
            not given. The plots go as PNG into a folder beside it that bears its name.
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
    out = _page_path(directories[0] if out is None else Path(out))
    pictures: dict[str, bytes] = {}
    sections = [
        template.Section("Overview", [template.cards(first)]),
        template.Section("Comparison" if len(runs) > 1 else "Summary", _comparison(runs, pictures)),
        *(
            template.Section(run.name, _of_a_run(run, pictures, number if len(runs) > 1 else None))
            for number, run in enumerate(runs, 1)
        ),
    ]
    for name, content in pictures.items():
        write_bytes(out.with_suffix("") / name, content)
    names = ", ".join(run.name for run in runs)
    write_text(out, template.page(title, lead or names, sections))
    return out


def _page_path(out: Path) -> Path:
    page = out if out.suffix in (".html", ".htm") else out / "report.html"
    if page.is_dir():
        raise UserError(
            f"found a directory at {page}, expected to write a page; give another --out"
        )
    return page


def _comparison(runs: Sequence[Run], pictures: dict[str, bytes]) -> list[str]:
    drawn = ((name, caption, draw(runs)) for name, caption, draw in COMPARISONS)
    return [
        template.cards([tables.overview(runs)]),
        template.plots([*_pictures(drawn, pictures, "all")]),
        template.cards([tables.domains_of_runs(runs), tables.differences(runs)]),
    ]


def _of_a_run(run: Run, pictures: dict[str, bytes], number: int | None = None) -> list[str]:
    """Plots and tables of a run; its number tells names apart that look alike in a file name."""
    of = run.name if number is None else f"{number} {run.name}"
    drawn = ((name, caption, draw(run)) for name, caption, draw in OF_A_RUN)
    return [
        template.plots([*_pictures(drawn, pictures, of)]),
        template.cards(
            [
                tables.domains(run),
                tables.mask_report(run),
                masks.units_table(run),
                masks.layers_table(run),
                tables.facts(run),
            ]
        ),
        template.folded("Recipe", run.config) if run.config else "",
    ]


def _pictures(drawn: Iterable[Drawn], pictures: dict[str, bytes], of: str) -> Iterator[Plot]:
    """Figures as SVG for the page, and as PNG into `pictures`; what was not drawn is left out."""
    for title, caption, figure in drawn:
        if figure is None:
            continue
        name = re.sub(r"[^a-z0-9]+", "-", f"{of} {title}".lower()).strip("-")
        yield Plot(title, caption, as_svg(figure, name))
        pictures[f"{name}.png"] = as_png(figure)
