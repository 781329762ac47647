"""Run directories as one self-contained HTML page, and its plots as PNG files.

Inline SVG takes its colors from the page, so that one drawing serves the dark and the light theme.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from llmshearing.errors import UserError
from llmshearing.files import write_bytes, write_text
from llmshearing.reports import mask_plots, plots, run_tables, template
from llmshearing.reports.run_directory import Run, read_runs
from llmshearing.reports.style import as_png, as_svg
from llmshearing.reports.template import Plot
from llmshearing.tables import Table

Drawn = tuple[str, str, Figure | None]

COMPARISONS = (
    ("Held-out loss", "Mean over the domains, in nats per token.", plots.held_out_mean),
    ("Training loss", "Cross entropy of a batch; strong line: running mean.", plots.training_loss),
    ("Throughput", "Tokens per second while training.", plots.throughput),
)
MASKS_CAPTION = (
    "Probability of each unit to stay, at the last evaluation. One row per layer from the top. "
    "Hidden and intermediate units are sorted from high to low."
)
DISTILLATION_CAPTION = (
    "Of training batches. The total is the weighted mean of cross entropy and divergence, plus the "
    "penalty of the masks when pruning."
)
OF_A_RUN = (
    ("Held-out loss by domain", "Dashed: the reference loss, if there is one.", plots.held_out),
    ("Above reference", "Held-out loss minus the reference loss.", plots.excess),
    ("Distillation", DISTILLATION_CAPTION, plots.distillation),
    ("Divergence by domain", "From the teacher, on training rows.", plots.divergence),
    ("Benchmarks", "Score of each task during the run, by lm-eval.", plots.tasks),
    ("Mixture", "Weight of each domain. Dashed: its share of the rows so far.", plots.mixture),
    ("Expected sizes", "Dashed: the target, which moves during the warmup.", plots.expected_sizes),
    ("Masks", MASKS_CAPTION, lambda run: mask_plots.heat_maps(run.last_masks)),
    ("Multipliers", "Lagrange multipliers of the size constraint.", plots.multipliers),
    (
        "Undecided units",
        "Units with a probability to stay between 0.05 and 0.95.",
        mask_plots.undecided,
    ),
)
TABLES_OF_A_RUN = (
    run_tables.domains,
    run_tables.mask_report,
    mask_plots.units_table,
    mask_plots.layers_table,
    run_tables.details,
)


def write_report(
    run_directories: Sequence[str | Path],
    out: str | Path | None = None,
    title: str = "Runs",
    lead: str = "",
    first: Sequence[Table] = (),
) -> Path:
    """Write the page of one or more runs, finished or still running, and return its path.

    Args:
        run_directories: of runs.
        out: the page, or a folder for it; by default `report.html` in the first run's directory.
            The plots are saved as PNG in a folder of the same name next to it.
        title: of the page.
        lead: a sentence below the title.
        first: tables to show before everything else.

    Raises:
        UserError: no directory, or one that is not a run directory.
    """
    directories = [Path(path) for path in run_directories]
    if not directories:
        raise UserError("found no run directory, expected one or more")
    runs = read_runs(directories)
    out = directories[0] if out is None else Path(out)
    out = out if out.suffix in (".html", ".htm") else out / "report.html"
    if out.is_dir():
        raise UserError(f"found a directory at {out}, expected to write a page there")
    pictures: dict[str, bytes] = {}
    sections = [
        ("Overview", [template.cards(first)]),
        ("Comparison" if len(runs) > 1 else "Summary", _comparison(runs, pictures)),
        *(
            (run.name, _of_a_run(run, pictures, number if len(runs) > 1 else None))
            for number, run in enumerate(runs, 1)
        ),
    ]
    for name, content in pictures.items():
        write_bytes(out.with_suffix("") / name, content)
    names = ", ".join(run.name for run in runs)
    write_text(out, template.page(title, lead or names, sections))
    return out


def _comparison(runs: Sequence[Run], pictures: dict[str, bytes]) -> list[str]:
    drawn = ((name, caption, draw(runs)) for name, caption, draw in COMPARISONS)
    return [
        template.cards([run_tables.overview(runs)]),
        template.plots([*_pictures(drawn, pictures, "all")]),
        template.cards([run_tables.domains_of_runs(runs), run_tables.differences(runs)]),
    ]


def _of_a_run(run: Run, pictures: dict[str, bytes], number: int | None = None) -> list[str]:
    """Plots and tables of a run; its number keeps similar names distinct in file names."""
    of = run.name if number is None else f"{number} {run.name}"
    drawn = ((name, caption, draw(run)) for name, caption, draw in OF_A_RUN)
    return [
        template.plots([*_pictures(drawn, pictures, of)]),
        template.cards([table(run) for table in TABLES_OF_A_RUN]),
        template.folded("Recipe", run.config) if run.config else "",
    ]


def _pictures(drawn: Iterable[Drawn], pictures: dict[str, bytes], of: str) -> Iterator[Plot]:
    """Figures as SVG for the page, and as PNG into `pictures`; skips what was not drawn."""
    for title, caption, figure in drawn:
        if figure is None:
            continue
        name = re.sub(r"[^a-z0-9]+", "-", f"{of} {title}".lower()).strip("-")
        yield Plot(title, caption, as_svg(figure, name))
        pictures[f"{name}.png"] = as_png(figure)
