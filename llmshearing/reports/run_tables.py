"""The tables of a report."""

from collections.abc import Sequence

from llmshearing.config import leaves
from llmshearing.progress import duration
from llmshearing.reports.run_directory import HELD_OUT, Run, Series
from llmshearing.tables import Table


def overview(runs: Sequence[Run]) -> Table:
    """One row per run: how far it is, its losses, its speed."""
    header = ("run", "stage", "step", "tokens", "train loss", "held-out", "tokens/s", "time")
    rows = []
    for run in runs:
        planned, speed = run.planned_steps, run.series("throughput/tokens_per_second")
        rows.append(
            (
                run.name,
                "pruning" if run.prunes else "training",
                f"{run.steps:,} of {planned:,}" if planned else f"{run.steps:,}",
                f"{run.tokens:,}",
                _last(run.series("loss/train/ce")),
                _last(run.mean_held_out()),
                "-" if speed is None else f"{speed.last:,.0f}",
                duration(run.lines[-1]["seconds"] if run.lines else 0),
            )
        )
    return Table("Runs", header, rows)


def domains(run: Run) -> Table:
    """One row per domain: first and last loss, reference, first and last weight, share."""
    references = run.group("mixture/reference/{}")
    weights, shares = run.group("mixture/weight/{}"), run.group("mixture/share/{}")
    header = "domain,first loss,last loss,reference,first weight,last weight,share".split(",")
    rows = [
        (
            name,
            _number(losses.values[0]),
            _number(losses.last),
            _last(references.get(name)),
            _number(weights[name].values[0], 3) if name in weights else "-",
            _last(weights.get(name), 3),
            _last(shares.get(name), 3),
        )
        for name, losses in run.group(HELD_OUT).items()
    ]
    return Table("Domains", header, rows)


def domains_of_runs(runs: Sequence[Run]) -> Table:
    """The last held-out loss, one row per domain and one column per run; then the mean."""
    found = {run.name: run.group(HELD_OUT) for run in runs}
    names = list(dict.fromkeys(name for losses in found.values() for name in losses))
    rows = [(name, *(_last(found[run.name].get(name)) for run in runs)) for name in names]
    if len(runs) < 2 or not rows:
        return Table("", (), [])
    rows.append(("mean", *(_last(run.mean_held_out()) for run in runs)))
    return Table("Last held-out loss by domain", ("domain", *found), rows)


def differences(runs: Sequence[Run]) -> Table:
    """One row per setting in which the recipes of the runs differ."""
    recipes = [leaves(run.recipe) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    unset: tuple[object, ...] = (None, "", [], {})  # the same as a missing key
    shown = [{k: str(v) for k, v in recipe.items() if v not in unset} for recipe in recipes]
    cells = [(key, [recipe.get(key, "-") for recipe in shown]) for key in keys]
    rows = [(key, *values) for key, values in cells if len(set(values)) > 1]
    header = ("setting", *(run.name for run in runs))
    return Table("Differences between the recipes", header, rows, prose=True)


def details(run: Run) -> Table:
    """Model, sizes, data and versions of a run."""
    manifest, rows = run.manifest, [("directory", str(run.directory))]
    if manifest is not None and run.table is not None:
        source = run.table.parameter_count(run.table.source)
        rows += [("model", manifest.source.path), ("parameters", f"{source:,}")]
        if run.target is not None:
            target = run.table.parameter_count(run.target)
            rows.append(("target parameters", f"{target:,} ({target / source:.1%})"))
        rows.append(("data", f"{manifest.data.root}, rows of {manifest.data.sequence_length}"))
        versions = [f"{name} {version}" for name, version in manifest.versions.items()]
        rows.append(("versions", ", ".join(versions)))
    return Table("Details", (), rows, prose=True)


def mask_report(run: Run) -> Table:
    """The report on the masks at the end of a pruning run; no rows before."""
    found = run.mask_report
    if not found:
        return Table("", (), [])
    rows = [("frozen", "yes" if found["frozen"] else "no")]
    for name, key in (("loss as trained", "soft_loss"), ("loss cut to size", "exact_loss")):
        rows.append((name, "-" if found[key] is None else _number(found[key])))
    problems = found["problems"] or ["none"]
    rows += [("problem" if found["problems"] else "problems", text) for text in problems]
    return Table("Report on the masks", (), rows, prose=True)


def _number(value: float, digits: int = 4) -> str:
    """A number; a dash for NaN."""
    return f"{value:.{digits}f}" if value == value else "-"


def _last(series: Series | None, digits: int = 4) -> str:
    return "-" if series is None else _number(series.last, digits)
