"""Runs of the real trainer, in this process or under Composer's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmshearing import preflight
from llmshearing.train import train


def run_here(recipe: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in this process; the lines of `metrics.jsonl`."""
    checked, inputs = preflight.check(recipe, overrides)
    train(checked, inputs)
    return metrics(Path(checked.run.directory))


def launch(ranks: int, recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Train under Composer's launcher on as many processes."""
    composer = Path(sys.executable).with_name("composer")
    command = [str(composer), "-n", str(ranks), "-m", "llmshearing.train", str(recipe), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def series(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    """One metric by step."""
    return {line["batch"]: line["metrics"][name] for line in lines if name in line["metrics"]}
