"""The real trainer with a witness: what every rank saw at every step, and the losses.

composer -n 2 tests/recording.py RECIPE.yaml key=value     # writes RUN/seen-RANK.jsonl, losses-RANK
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, get_device

from llmshearing import preflight
from llmshearing.config import Recipe
from llmshearing.errors import exits_on_user_error
from llmshearing.preflight import Inputs
from llmshearing.progress import set_up_log
from llmshearing.resuming import find_checkpoint
from llmshearing.train import build_trainer


class Witness(Callback):
    """Writes step, sample numbers, domains and a sum of the token ids of each batch; its losses."""

    def __init__(self, directory: Path) -> None:
        rank = dist.get_global_rank()
        self.seen = directory / f"seen-{rank}.jsonl"
        self.losses = directory / f"losses-{rank}.jsonl"

    def batch_start(self, state: State, logger: Logger) -> None:
        batch = state.batch
        line = {
            "step": state.timestamp.batch.value,
            "samples": batch["sample_id"].tolist(),
            "domains": batch["domain"].tolist(),
            "tokens": [int(row) for row in batch["input_ids"].sum(1)],
        }
        append(self.seen, line)

    def batch_end(self, state: State, logger: Logger) -> None:
        losses = {name: float(loss) for name, loss in state.total_loss_dict.items()}
        line = {"step": state.timestamp.batch.value - 1, "losses": losses, "generators": digest()}
        append(self.losses, line)


def digest() -> str:
    """Of the states of all generators of the process, which the next draw shows."""
    states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return hashlib.sha256(repr(states).encode()).hexdigest()


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def run_recorded(recipe: Recipe, inputs: Inputs) -> None:
    directory = Path(recipe.run.directory)
    directory.mkdir(parents=True, exist_ok=True)
    set_up_log(directory, dist.get_global_rank())
    witness = Witness(directory)
    trainer = build_trainer(recipe, inputs, find_checkpoint(recipe), extra_callbacks=[witness])
    trainer.fit()
    trainer.close()


def seen(directory: Path) -> dict[int, list[list[int]]]:
    """[sample, domain, token sum] of every row of each step's global batch, in order.

    Steps that were repeated after an interruption must have seen the same.
    """
    found: dict[tuple[int, int], Any] = {}
    for path in sorted(directory.glob("seen-*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            rows = list(zip(line["samples"], line["domains"], line["tokens"], strict=True))
            key = (line["step"], rows[0][0])
            assert found.setdefault(key, rows) == rows, (
                f"step {line['step']} was not repeated alike"
            )
    steps: dict[int, dict[int, tuple[int, ...]]] = {}
    for (step, _), rows in sorted(found.items()):
        for row in rows:
            assert steps.setdefault(step, {}).setdefault(row[0], row) == row
    return {step: [list(rows[n]) for n in sorted(rows)] for step, rows in steps.items()}


def losses(directory: Path) -> dict[int, list[dict[str, Any]]]:
    """The losses of each step by rank, and what the generators were after it.

    Steps that were repeated after an interruption must have had the same.
    """
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(directory.glob("losses-*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            ranks = found.setdefault(line.pop("step"), {})
            assert ranks.setdefault(path.name, line) == line, f"{path.name} was not repeated alike"
    return {step: list(ranks.values()) for step, ranks in found.items()}


@exits_on_user_error
def main(arguments: list[str]) -> None:
    recipe, inputs = preflight.resolve(arguments[0], arguments[1:], dist.get_world_size())
    dist.initialize_dist(get_device())
    run_recorded(recipe, inputs)


def rank_context() -> ForkServerContext:
    """Processes forked from one that has done the imports and nothing else.

    Forked from the test's own process, they would inherit its OpenMP threads as dead ones, and wait
    for them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer", "llmshearing.train", "recording"])
    return context


def run_rank(
    rank: int,
    ranks: int,
    port: int,
    log: str,
    arguments: list[str],
    run: Callable[[list[str]], int],
) -> None:
    """One rank as the launcher would start it, in a process of its own."""
    with Path(log).open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # As in a rank of the launcher: a process that a server forked asks such a server for its own
    # children, which would not notice the rank's end.
    multiprocessing.set_start_method("fork", force=True)
    sys.exit(run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
