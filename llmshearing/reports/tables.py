"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence

from llmshearing.config import leaves
from llmshearing.reports.runs import HELD_OUT, Run, Series
from llmshearing.reports.template import Table


def overview(runs: Sequence[Run]) -> Table:
    """One row a run: where it is, what it cost, what it reached."""
    header = ("run", "stage", "step", "tokens", "train loss", "held-out", "tokens/s", "time")
    return Table("Runs", header, [_overview_row(run) for run in runs])


def domains(run: Run) -> Table:
    """One row a domain: losses at the first and last evaluation, reference, weight, share."""
    losses = run.group(HELD_OUT)
    references = run.group("mixture/reference/{}")
    weights, shares = run.group("mixture/weight/{}"), run.group("mixture/share/{}")
    header = (
        "domain",
        "first loss",
        "last loss",
        "reference",
        "first weight",
        "last weight",
        "share",
    )
    rows = [
        (
            name,
            number(series.values[0]),
            number(series.last),
            _last(references.get(name)),
            number(weights[name].values[0], 3) if name in weights else "-",
            _last(weights.get(name), 3),
            _last(shares.get(name), 3),
        )
        for name, series in losses.items()
    ]
    return Table("Domains", header, rows)


def domains_of_runs(runs: Sequence[Run]) -> Table:
    """One row a domain, one column a run: the last held-out loss; the mean below."""
    found = {run.name: run.group(HELD_OUT) for run in runs}
    names = list(dict.fromkeys(name for losses in found.values() for name in losses))
    rows = [(name, *(_last(found[run.name].get(name)) for run in runs)) for name in names]
    if len(runs) < 2 or not rows:
        return Table("", (), [])
    rows.append(("mean", *(_last(run.mean_held_out()) for run in runs)))
    return Table("Last held-out loss by domain", ("domain", *found), rows)


def differences(runs: Sequence[Run]) -> Table:
    """One row for each setting in which the runs' recipes differ."""
    recipes = [leaves(run.recipe) for run in runs]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    cells = [(key, [str(recipe.get(key, "-")) for recipe in recipes]) for key in keys]
    rows = [(key, *values) for key, values in cells if len(set(values)) > 1]
    return Table(
        "Where the recipes differ", ("setting", *(run.name for run in runs)), rows, prose=True
    )


def facts(run: Run) -> Table:
    """What was trained on what: model, sizes, data, versions."""
    rows = [("directory", str(run.directory))]
    if run.table is not None:
        source = run.table.parameter_count(run.table.source)
        rows.append(("model", str(run.manifest["source"].get("path", "-"))))
        rows.append(("parameters", f"{source:,}"))
        if run.target is not None:
            target = run.table.parameter_count(run.target)
            rows.append(("of the target", f"{target:,} ({target / source:.1%})"))
    data = run.manifest.get("data", {})
    if data:
        rows.append(
            ("data", f"{data.get('root', '-')}, rows of {data.get('sequence_length', '-')}")
        )
    versions = run.manifest.get("versions", {})
    if versions:
        rows.append(("versions", ", ".join(f"{name} {of}" for name, of in versions.items())))
    return Table("Facts", (), rows, prose=True)


def mask_report(run: Run) -> Table:
    """What a pruning run said of its masks at its end; no rows where it has not ended."""
    found = run.mask_report
    if not found:
        return Table("", (), [])
    rows = [("frozen", "yes" if found["frozen"] else "no")]
    for name, key in (("loss as trained", "soft_loss"), ("loss cut to size", "exact_loss")):
        rows.append((name, "-" if found[key] is None else number(found[key])))
    problems = found["problems"] or ["none"]
    rows += [("problem" if found["problems"] else "problems", text) for text in problems]
    return Table("MaskReport on the masks", (), rows, prose=True)


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash for none."""
    return f"{value:.{digits}f}" if value == value else "-"


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _overview_row(run: Run) -> tuple[str, ...]:
    planned = run.planned_steps
    speed = run.series("throughput/tokens_per_second")
    return (
        run.name,
        "pruning" if run.prunes else "training",
        f"{run.steps:,} of {planned:,}" if planned else f"{run.steps:,}",
        f"{run.tokens:,}",
        _last(run.series("loss/train/ce")),
        _last(run.mean_held_out()),
        "-" if speed is None else f"{speed.last:,.0f}",
        duration(run.seconds),
    )


def _last(series: Series | None, digits: int = 4) -> str:
    return "-" if series is None else number(series.last, digits)
