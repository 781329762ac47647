"""Runs of the real trainer, in this process or under Composer's launcher."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import recording

from llmshearing import preflight
from llmshearing import train as train_module
from llmshearing.train import train


def with_teacher(recipe: Path) -> Path:
    """Make a pruning recipe distil from its own source."""
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"distillation": {}}))
    return recipe


def run_here(recipe: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in this process; the lines of `metrics.jsonl`."""
    checked, inputs = preflight.resolve(recipe, overrides)
    train(checked, inputs)
    return metrics(Path(checked.run.directory))


def launch(ranks: int, recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Train under Composer's launcher on as many processes."""
    composer = Path(sys.executable).with_name("composer")
    command = [str(composer), "-n", str(ranks), "-m", "llmshearing.train", str(recipe), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def start_ranks(
    ranks: int,
    directory: Path,
    arguments: list[str],
    *,
    run: Callable[[list[str]], int] | None = None,
    only: set[int] | None = None,
    port: int | None = None,
) -> list[ForkProcess]:
    """Start ranks that are forked from a process with the imports done, which saves them.

    Args:
        ranks: of the run.
        directory: each rank's output goes to `log-RANK.txt` in it.
        arguments: of `llmshearing.train`.
        run: what each rank does; training where not given.
        only: the ranks that connect; all by default.
        port: where they meet; a free one by default.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    context = recording.rank_context()
    processes = [
        context.Process(
            target=recording.run_rank,
            args=(rank, ranks, port, str(log_file(directory, rank)), arguments),
            kwargs={"run": run or train_module.main},
        )
        for rank in sorted(only or range(ranks))
    ]
    for process in processes:
        process.start()
    return processes


def log_file(directory: Path, rank: int) -> Path:
    """What a rank wrote to its standard output and error."""
    return directory / f"log-{rank}.txt"


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def series(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    """One metric by step."""
    return {line["batch"]: line["metrics"][name] for line in lines if name in line["metrics"]}
