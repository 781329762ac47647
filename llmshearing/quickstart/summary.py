"""What the path led to: `summary.json`, `report.html` and a closing table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from llmshearing.files import write_json
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.stages import MODELS, Layout
from llmshearing.reports.page import write_report
from llmshearing.reports.runs import read_run
from llmshearing.reports.tables import number
from llmshearing.reports.template import Table

TRAININGS = ("source", "prune", "continue", "scratch")
TOLD = {
    "source": "the model to shear",
    "pruned": "cut to the target shape",
    "sheared": "after continued training",
    "scratch": "the same shape from scratch",
}


def write_results(project: Path, layout: Layout, record: Record, console: Console) -> None:
    """Write the results of a finished path and tell where they are.

    Args:
        project: what the layout's paths are relative to.
        layout: of the output directory.
        record: of the stages.
        console: for the closing table.
    """
    root = project / layout.root
    summary = summarise(project, layout, record)
    write_json(root / "summary.json", summary)
    runs = [project / layout.run(name) for name in TRAININGS]
    table = models_table(summary)
    write_report(
        [path for path in runs if path.is_dir()],
        root / "report.html",
        title="Sheared on this machine",
        lead=_lead(summary),
        first=[table],
    )
    console.print(_closing(table, layout))
    console.out(_lead(summary), highlight=False)
    for name in ("report.html", "summary.json"):
        console.out(f"{layout.root / name}", highlight=False)


def summarise(project: Path, layout: Layout, record: Record) -> dict[str, Any]:
    """Losses, sizes, tokens, time and memory of a finished path."""
    losses = {
        name: json.loads((project / layout.losses(name)).read_text(encoding="utf-8"))
        for name in MODELS
    }
    runs = {
        name: read_run(path) for name in TRAININGS if (path := project / layout.run(name)).is_dir()
    }
    return {
        **{f"{name}_loss": losses[name]["mean_loss"] for name in MODELS},
        **{f"{name}_parameters": _parameters(project / layout.model(name)) for name in MODELS},
        "tokens": {name: run.tokens for name, run in runs.items()},
        "minutes": round(sum(entry["seconds"] for entry in record.done.values()) / 60, 2),
        "peak_memory_gb": max(entry["peak_memory_gb"] for entry in record.done.values()),
        "losses": {
            name: {domain: held["loss"] for domain, held in losses[name]["domains"].items()}
            for name in MODELS
        },
        "seconds": {name: entry["seconds"] for name, entry in record.done.items()},
    }


def models_table(summary: dict[str, Any]) -> Table:
    """One row a model: size, mean loss, loss by domain."""
    domains = list(summary["losses"]["source"])
    rows = [
        (
            name,
            f"{summary[f'{name}_parameters']:,}",
            number(summary[f"{name}_loss"]),
            *(number(summary["losses"][name][domain]) for domain in domains),
        )
        for name in MODELS
    ]
    return Table("Held-out loss, nats per token", ("model", "parameters", "mean", *domains), rows)


def _parameters(directory: Path) -> int:
    from llmshearing.huggingface.source import read_source  # brings torch along

    table = read_source(directory).table
    return table.parameter_count(table.source)


def _lead(summary: dict[str, Any]) -> str:
    gain = summary["scratch_loss"] - summary["sheared_loss"]
    tokens = summary["tokens"]["prune"] + summary["tokens"]["continue"]
    comparison = "below" if gain >= 0 else "above"
    return (
        f"From {summary['source_parameters']:,} to {summary['sheared_parameters']:,} parameters: "
        f"after {tokens:,} tokens the sheared model's loss is {abs(gain):.3f} {comparison} that of "
        f"the same shape trained from scratch on {summary['tokens']['scratch']:,}. "
        f"{summary['minutes']:.1f} minutes, {summary['peak_memory_gb']:.1f} GB of memory."
    )


def _closing(table: Table, layout: Layout) -> TerminalTable:
    """Each model with its size and mean loss, and where it is saved."""
    shown = TerminalTable(title=f"Saved in {layout.root}", title_justify="left")
    for name in ("model", "", "parameters", "mean loss", "directory"):
        shown.add_column(name, overflow="fold")
    for name, parameters, mean, *_ in table.rows:
        place = layout.model(name)
        if place.is_relative_to(layout.root):
            place = place.relative_to(layout.root)
        shown.add_row(name, TOLD[name], parameters, mean, str(place))
    return shown
