"""The results of a finished quickstart: `summary.json`, `report.html` and a closing table."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from llmshearing.architecture.families import family_of, read_config
from llmshearing.files import read_json, write_json
from llmshearing.mixture.references import References
from llmshearing.reports.page import write_report
from llmshearing.reports.run_directory import read_run
from llmshearing.tables import Table

MODELS = {
    "source": "before pruning",
    "pruned": "cut to half its width",
    "sheared": "pruned, then trained further",
    "scratch": "the same shape from scratch",
}
RUNS = ("source", "prune", "continue", "scratch")


def write_results(out: Path) -> None:
    """Write `summary.json` and `report.html` of a finished quickstart and print the losses."""
    summary = summarise(out)
    write_json(out / "summary.json", summary)
    rows = [
        (
            f"{name}: {what}",
            f"{summary[f'{name}_parameters']:,}",
            f"{summary[f'{name}_loss']:.4f}",
            *(f"{loss:.4f}" for loss in summary["losses"][name].values()),
        )
        for name, what in MODELS.items()
    ]
    header = ("model", "parameters", "mean", *summary["losses"]["source"])
    table = Table("Held-out loss, nats per token", header, rows)
    gain = summary["scratch_loss"] - summary["sheared_loss"]
    tokens = summary["tokens"]["prune"] + summary["tokens"]["continue"]
    lead = (
        f"Pruned from {summary['source_parameters']:,} to {summary['sheared_parameters']:,} "
        f"parameters. After {tokens:,} tokens the sheared model's held-out loss is {abs(gain):.3f} "
        f"{'below' if gain >= 0 else 'above'} that of the same shape trained from scratch on "
        f"{summary['tokens']['scratch']:,} tokens. All steps took {summary['minutes']:.1f} minutes "
        f"and {summary['peak_memory_gb']:.1f} GB of memory."
    )
    page = out / "report.html"
    runs = [out / "runs" / name for name in RUNS]
    write_report(runs, page, title="A model pruned on this machine", lead=lead, first=[table])
    places = f"{page}  {out / 'summary.json'}  {out / 'models'}/"
    replace(table, notes=["", lead, places]).show()


def summarise(out: Path) -> dict[str, Any]:
    """Losses, sizes, tokens, time and memory of a finished quickstart."""
    losses = {"source": References.read(out / "references.yaml").losses}
    for file in ("pruned", "sheared", "scratch"):
        domains = read_json(out / f"losses/{file}.json")["domains"]
        losses[file] = {domain: found["loss"] for domain, found in domains.items()}
    done = {path.stem: read_json(path) for path in sorted((out / "done").glob("*.json"))}
    return {
        **{f"{name}_loss": fmean(losses[name].values()) for name in MODELS},
        **{f"{name}_parameters": _parameters(out / "models" / name) for name in MODELS},
        "tokens": {name: read_run(out / "runs" / name).tokens for name in RUNS},
        "minutes": round(sum(step["seconds"] for step in done.values()) / 60, 2),
        "peak_memory_gb": max(step["peak_memory_gb"] for step in done.values()),
        "losses": losses,
        "seconds": {name: step["seconds"] for name, step in done.items()},
    }


def _parameters(model: Path) -> int:
    config = read_config(model)
    table = family_of(config).table(config)
    return table.parameter_count(table.source)
