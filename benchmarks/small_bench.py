"""The small bench's steps, each by the command that a user would type; shared by the benchmarks."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

PRUNE = "yamls/prune/tiny-llama-to-half.yaml"
CONTINUE = "yamls/continue/tiny-llama-half.yaml"
STEPS = 300  # of a stage


def train(recipe: str, settings: dict[str, object], overrides: list[str]) -> None:
    """One run; a run that has finished does nothing."""
    pairs = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "llmshearing.train", recipe, *pairs, *overrides]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def verb(*words: object) -> None:
    command = [sys.executable, "-m", "llmshearing.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def export(run: Path, out: Path) -> None:
    if not (out / "llmshearing.json").is_file():
        verb("export", run, out, "--allow-undecided")


def evaluate(model: Path, data: Path, rows: int = 0) -> dict[str, float]:
    """Held-out loss per domain (nats per token) on some rows or all (0), kept next to MODEL."""
    path = model.with_suffix(".json")
    if not path.is_file():
        some = ["--rows", rows] if rows else []
        verb("evaluate", model, "--data", data / "eval", "--json", path, *some)
    domains = json.loads(path.read_text())["domains"]
    return {name: domain["loss"] for name, domain in domains.items()}


def settings(data: Path, run: Path, seed: int, steps: int, eval_rows: int) -> dict[str, object]:
    """What every run says: where, how long, and rows per domain of its own evaluations."""
    return {
        "data.root": data,
        "data.eval_rows": eval_rows,
        "run.directory": run,
        "run.seed": seed,
        "run.duration": f"{steps}ba",
        "run.eval_interval": f"{steps}ba",
        "run.keep_checkpoints": 1,
    }


def spread(values: list[float]) -> str:
    """The mean, and over several seeds the range."""
    ends = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{ends}"
