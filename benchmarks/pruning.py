"""The small bench: ways to cut a model, each followed by continued training on equal tokens.

    python benchmarks/pruning.py MODEL DATA OUT [--arms default random ...] [--seeds 17 18 19]

`MODEL` is tiny-llama, `DATA` a tree made of the sample by `yamls/data/redpajama-sample.yaml`. An
arm that learns its masks has 300 steps of pruning and 300 of continued training; one that cuts at
once has 600 of the latter. What is finished in `OUT` is kept; `--table` prints it without running
anything. An arm's losses are means over the domains, on all held-out rows, of exported models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PRUNE = "yamls/prune/tiny-llama-to-half.yaml"
CONTINUE = "yamls/continue/tiny-llama-half.yaml"
TARGET = ("hidden=128", "layers=6", "heads=4", "intermediate=344")
PAPER = {"sharpness": 1, "settle": "1dur"}
LINEAR = {"distribution": "linear"}
PUBLISHED = {"constraint": "published"}
BELOW = {"start": -3.0, "warmup": "0ba"}  # a quarter of the units expected, of every axis
STEPS = 300  # of a stage


@dataclass(frozen=True)
class Arm:
    """One way to come to the target shape.

    Attributes:
        pruning: settings of masks that learn, beside the recipe's; None cuts at once or not at all.
        method: how to cut at once: `importance`, `magnitude`, `random` or `spaced`.
        first: further settings of the first stage.
        second: further settings of the second stage.
    """

    pruning: dict[str, object] | None = None
    method: str = ""
    first: dict[str, object] = field(default_factory=dict)
    second: dict[str, object] = field(default_factory=dict)


ARMS = {
    "default": Arm({}),
    "published": Arm(PUBLISHED),
    "released-gate": Arm({"distribution": "hard_concrete_released"}),
    "linear": Arm(LINEAR),
    "linear-published": Arm(LINEAR | PUBLISHED),
    "from-importance": Arm({"importance": "IMPORTANCE"}),
    "paper-masks": Arm(PAPER),
    "one-multiplier-rate": Arm({"linear_learning_rate": 1.0}),
    "below": Arm(BELOW),
    "below-published": Arm(BELOW | PUBLISHED),
    "below-linear": Arm(BELOW | LINEAR | {"start": -1.0}),
    "below-linear-published": Arm(BELOW | LINEAR | PUBLISHED | {"start": -1.0}),
    "rate-5e-4": Arm({}, first={"optimizer.learning_rate": 5e-4}),
    "rate-2e-3": Arm({}, first={"optimizer.learning_rate": 2e-3}),
    "importance": Arm(method="importance"),
    "magnitude": Arm(method="magnitude"),
    "random": Arm(method="random"),
    "spaced": Arm(method="spaced"),
    "scratch": Arm(method="random", second={"model.initialize": "random"}),
}


class Bench:
    """Runs arms, each stage by the command that a user would type."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.data, self.out = options.model, options.data, options.out
        self.steps, self.overrides = options.steps, options.overrides

    def run(self, name: str, seed: int) -> None:
        arm, folder = ARMS[name], self.out / f"{name}-{seed}"
        if (folder / "result.json").is_file():
            return
        cut = folder / "cut"
        if not (cut / "llmshearing.json").is_file():
            if arm.pruning is None:
                self.cut_at_once(arm, seed, cut)
            else:
                self.prune(arm, seed, folder / "prune")
                self.verb("export", folder / "prune", cut, "--allow-undecided")
        result = {"cut": self.evaluate(cut)}
        if arm.pruning is not None:
            result["verdict"] = json.loads((folder / "prune" / "verdict.json").read_text())
        stage = self.steps * (2 if arm.pruning is None else 1)
        settings = self.common(folder / "continue", seed, stage) | {"model.path": cut} | arm.second
        self.train(CONTINUE, settings)
        if not (folder / "sheared").exists():
            self.verb("export", folder / "continue", folder / "sheared")
        result["sheared"] = self.evaluate(folder / "sheared")
        (folder / "result.json").write_text(json.dumps(result, indent=1))

    def prune(self, arm: Arm, seed: int, run: Path) -> None:
        assert arm.pruning is not None
        settings = self.common(run, seed, self.steps) | {"model.path": self.model} | arm.first
        settings |= {f"pruning.{key}": value for key, value in arm.pruning.items()}
        if "IMPORTANCE" in arm.pruning.values():
            settings["pruning.importance"] = self.scores()
        self.train(PRUNE, settings)

    def cut_at_once(self, arm: Arm, seed: int, out: Path) -> None:
        how = ["--method", arm.method, "--seed", seed]
        if arm.method == "importance":
            how = ["--importance", self.scores()]
        self.verb("prune-oneshot", self.model, out, "--target", *TARGET, *how)

    def scores(self) -> Path:
        path = self.out / "importance.safetensors"
        if not path.is_file():
            data = self.data / "prune"
            self.verb("importance", self.model, "--data", data, "--rows", 1024, "--out", path)
        return path

    def common(self, run: Path, seed: int, steps: int) -> dict[str, object]:
        return {
            "data.root": self.data,
            "data.eval_rows": 16,
            "run.directory": run,
            "run.seed": seed,
            "run.duration": f"{steps}ba",
            "run.eval_interval": f"{steps}ba",
            "run.keep_checkpoints": 1,
        }

    def train(self, recipe: str, settings: dict[str, object]) -> None:
        pairs = [f"{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "llmshearing.train", recipe, *pairs, *self.overrides]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def verb(self, *words: object) -> None:
        command = [sys.executable, "-m", "llmshearing.cli", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def evaluate(self, model: Path) -> dict[str, float]:
        """Mean held-out loss per domain, nats per token."""
        path = model.with_suffix(".json")
        if not path.is_file():
            self.verb("evaluate", model, "--data", self.data / "eval", "--json", path)
        domains = json.loads(path.read_text())["domains"]
        return {name: domain["loss"] for name, domain in domains.items()}


def table(out: Path) -> str:
    """Mean losses of every arm that has finished, over its seeds."""
    lines = [
        "| arm | seeds | after the cut | after continued training |",
        "|---|---|---|---|",
    ]
    for name in ARMS:
        results = [
            json.loads(p.read_text()) for p in sorted(out.glob(f"{name}-[0-9]*/result.json"))
        ]
        if not results:
            continue
        columns = []
        for stage in ("cut", "sheared"):
            means = [statistics.mean(result[stage].values()) for result in results]
            spread = f" ({min(means):.4f} to {max(means):.4f})" if len(means) > 1 else ""
            columns.append(f"{statistics.mean(means):.4f}{spread}")
        lines.append(f"| {name} | {len(results)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def convergence(out: Path) -> str:
    """What the masks of every arm came to: expected sizes, and units undecided."""
    lines = []
    for name in ARMS:
        for path in sorted(out.glob(f"{name}-[0-9]*/prune/verdict.json")):
            axes = json.loads(path.read_text())["axes"]
            if not lines:
                heads = [f"{axis} ({one['target']})" for axis, one in axes.items()]
                lines = [f"| run | {' | '.join(heads)} | undecided |", "|---" * 6 + "|"]
            sizes = [f"{one['expected']:.1f}" for one in axes.values()]
            undecided = sum(one["undecided"] for one in axes.values())
            lines.append(f"| {path.parents[1].name} | {' | '.join(sizes)} | {undecided} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--steps", type=int, default=STEPS, help="of a stage")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options, options.overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        bench = Bench(options)
        for name in options.arms:
            for seed in options.seeds:
                bench.run(name, seed)
    print(table(options.out), convergence(options.out), sep="\n\n")


if __name__ == "__main__":
    main()
