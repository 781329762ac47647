"""Predicted and measured time per token of shapes drawn by seed from a search's grid.

    OMP_NUM_THREADS=2 python benchmarks/latency.py MODEL OUT [--target 50M] [--values 4]

The prediction is what a budget of `latency` uses: times of decoder blocks inside of whole models.
Then each shape is written to OUT with random weights, and `llmshearing throughput` times it. No
other work should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch

from llmshearing.architecture.shape import Shape
from llmshearing.architecture.space import resolve_space
from llmshearing.architecture.target import ServingSettings, TargetSettings
from llmshearing.evaluation.latency import BlockTimes, largest_of, shapes_to_time, time_blocks
from llmshearing.export.directory import target_fields
from llmshearing.huggingface.source import Source, read_source
from llmshearing.huggingface.stock import stock_config, stock_model
from llmshearing.tables import Table


def predict(source: Source, grid: list[Shape], serving: ServingSettings) -> BlockTimes:
    wanted = shapes_to_time(grid)
    times = {}
    for number, shape in enumerate(wanted, 1):
        times[shape] = time_blocks(source, shape, serving, torch.device("cpu"))
        print(f"block {number} of {len(wanted)}", file=sys.stderr)
    return BlockTimes(times, largest_of(wanted))


def measure(source: Source, shape: Shape, serving: ServingSettings, out: Path) -> float:
    """Milliseconds per token, by the command that a user would type."""
    model = stock_model(stock_config(target_fields(source.config, shape, {})), dtype=torch.float32)
    model.save_pretrained(out / shape.name)
    report = out / f"{shape.name}.json"
    words = [out / shape.name, "--batch-sizes", serving.batch, "--prompt", serving.prompt]
    words += ["--new-tokens", serving.new_tokens, "--dtype", serving.dtype, "--json", report]
    command = [sys.executable, "-m", "llmshearing.cli", "throughput", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (speeds,) = (model["speeds"] for model in json.loads(report.read_text())["models"].values())
    return speeds[0]["token_ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", default="50M", help="most parameters")
    parser.add_argument("--values", type=int, default=4, help="sizes per axis of the grid")
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()
    source, serving = read_source(given.model), ServingSettings(dtype="float32")
    space, errors = resolve_space(
        source.table, TargetSettings(parameters=given.target), given.values
    )
    assert not errors, errors
    grid = space.within(source.table)
    predicted = predict(source, grid, serving)
    rows = []
    for shape in random.Random(given.seed).sample(grid, given.shapes):
        expected, found = predicted(shape), measure(source, shape, serving, given.out)
        numbers = (f"{expected:.2f}", f"{found:.2f}", f"{expected / found - 1:+.1%}")
        rows.append((shape.name, *numbers))
        print(*rows[-1], file=sys.stderr)
    Table("", ("shape", "predicted ms", "measured ms", "off"), rows).show()


if __name__ == "__main__":
    main()
