"""The small bench: ways to cut a model, each followed by continued training on equal tokens.

    python benchmarks/pruning.py MODEL DATA OUT [key=value ...] [--arms default ...] [--seeds 17]

`MODEL` is tiny-llama, `DATA` a tree made of the sample by `yamls/data/redpajama-sample.yaml`. An
arm that learns its masks has 300 steps of pruning and 300 of continued training; one that cuts at
once has 600 of the latter. What is finished in `OUT` is kept; `--table` prints it without running
anything. An arm's losses are means over the domains, on all held-out rows, of exported models.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import small_bench

TARGET = ("hidden=128", "layers=6", "heads=4", "intermediate=344")
HARD = {"distribution": "paper"}
RELEASED_GATE = {"distribution": "released"}
PAPER_CONSTRAINT = {"constraint": "paper"}
PAPER_MASKS = HARD | {"sharpness": 1, "freeze": "1dur"}
# Fewer units of every axis expected at the start than asked for: a third, and a quarter. A gate
# without noise has to leave some on.
BELOW = {
    "init_log_alpha": -1.0,
    "warmup": "0ba",
    "importance": "IMPORTANCE",
    "importance_spread": 3.0,
}
HARD_BELOW = HARD | {"init_log_alpha": -3.0, "warmup": "0ba"}


@dataclass(frozen=True)
class Arm:
    """One way to come to the target shape.

    Attributes:
        pruning: more settings of masks that learn; None cuts at once or not at all.
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
    "paper-constraint": Arm(PAPER_CONSTRAINT),
    "hard-concrete": Arm(HARD),
    "hard-concrete-paper": Arm(HARD | PAPER_CONSTRAINT),
    "released-gate": Arm(RELEASED_GATE),
    "below": Arm(BELOW),
    "below-paper": Arm(BELOW | PAPER_CONSTRAINT),
    "below-hard-concrete": Arm(HARD_BELOW),
    "below-hard-concrete-paper": Arm(HARD_BELOW | PAPER_CONSTRAINT),
    "paper-masks": Arm(PAPER_MASKS),
    "from-importance": Arm({"importance": "IMPORTANCE"}),
    "one-multiplier-rate": Arm({"linear_learning_rate": 1.0}),
    "mask-rate-0.3": Arm({"learning_rate": 0.3}),
    "freeze-0.6": Arm({"sharpen_until": "0.5dur", "freeze": "0.6dur"}),
    "freeze-0.35": Arm({"warmup": "0.1dur", "sharpen_until": "0.25dur", "freeze": "0.35dur"}),
    "rate-5e-4": Arm({}, first={"optimizer.learning_rate": 5e-4}),
    "rate-2e-3": Arm({}, first={"optimizer.learning_rate": 2e-3}),
    "importance": Arm(method="importance"),
    "magnitude": Arm(method="magnitude"),
    "random": Arm(method="random"),
    "spaced": Arm(method="spaced"),
    "scratch": Arm(method="random", second={"model.initialize": "random"}),
}


class Bench:
    """Runs arms in a folder, each stage by the command that a user would type."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.data, self.out = options.model, options.data, options.out
        self.steps, self.overrides = options.steps, options.overrides

    def run(self, name: str, seed: int) -> None:
        arm, folder = ARMS[name], self.out / f"{name}-{seed}"
        if (folder / "result.json").is_file():
            return
        cut, sheared = folder / "cut", folder / "sheared"
        if arm.pruning is None:
            self.cut_at_once(arm, seed, cut)
        else:
            self.prune(name, seed)
            small_bench.export(folder / "prune", cut)
        result = {"cut": small_bench.evaluate(cut, self.data)}
        stage = self.steps * (2 if arm.pruning is None else 1)
        settings = self.settings(folder / "continue", seed, stage) | {"model.path": cut}
        small_bench.train(small_bench.CONTINUE, settings | arm.second, self.overrides)
        small_bench.export(folder / "continue", sheared)
        result["sheared"] = small_bench.evaluate(sheared, self.data)
        (folder / "result.json").write_text(json.dumps(result, indent=1))

    def prune(self, name: str, seed: int) -> None:
        arm, run = ARMS[name], self.out / f"{name}-{seed}" / "prune"
        if arm.pruning is None or (run / "mask_report.json").is_file():
            return
        settings = self.settings(run, seed, self.steps) | {"model.path": self.model} | arm.first
        settings |= {f"pruning.{key}": value for key, value in arm.pruning.items()}
        if "importance" in arm.pruning:
            settings["pruning.importance"] = self.scores()
        small_bench.train(small_bench.PRUNE, settings, self.overrides)

    def cut_at_once(self, arm: Arm, seed: int, out: Path) -> None:
        if (out / "llmshearing.json").is_file():
            return
        how = ["--method", arm.method, "--seed", seed]
        if arm.method == "importance":
            how = ["--importance", self.scores()]
        small_bench.verb("prune-oneshot", self.model, out, "--target", *TARGET, *how)

    def scores(self) -> Path:
        path = self.out / "importance.safetensors"
        if not path.is_file():
            data = self.data / "prune"
            words = ["importance", self.model, "--data", data, "--rows", 1024, "--out", path]
            small_bench.verb(*words)
        return path

    def settings(self, run: Path, seed: int, steps: int) -> dict[str, object]:
        return small_bench.settings(self.data, run, seed, steps, eval_rows=16)


def table(out: Path) -> str:
    """Mean losses of every arm that has finished, over its seeds."""
    lines: list[str] = []
    for name in ARMS:
        results = [
            json.loads(p.read_text()) for p in sorted(out.glob(f"{name}-[0-9]*/result.json"))
        ]
        if not results:
            continue
        if not lines:
            lines = [
                "| arm | seeds | after the cut | after continued training |",
                "|---|---|---|---|",
            ]
        columns = [
            small_bench.spread([statistics.mean(result[stage].values()) for result in results])
            for stage in ("cut", "sheared")
        ]
        lines.append(f"| {name} | {len(results)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def masks(out: Path) -> str:
    """What the masks of every arm came to, over its seeds, and the loss of the model so cut.

    Of each axis the expected size that is furthest from its target; the loss is that of the rows
    that the run itself evaluates, not of all.
    """
    lines: list[str] = []
    for name in ARMS:
        paths = sorted(out.glob(f"{name}-[0-9]*/prune/mask_report.json"))
        found = [json.loads(path.read_text()) for path in paths]
        if not found:
            continue
        axes = [report["axes"] for report in found]
        if not lines:
            heads = [f"{axis} ({one['target']})" for axis, one in axes[0].items()]
            lines = [f"| arm | seeds | {' | '.join(heads)} | undecided | loss |"]
            lines.append("|---" * (len(heads) + 4) + "|")
        sizes = [
            max(
                (one[axis]["furthest"] for one in axes), key=lambda x, t=first["target"]: abs(x - t)
            )
            for axis, first in axes[0].items()
        ]
        undecided = max(sum(one["undecided"] for one in run.values()) for run in axes)
        cells = [name, len(found), *(f"{size:.1f}" for size in sizes), undecided]
        cells.append(small_bench.spread([report["exact_loss"] for report in found]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--steps", type=int, default=small_bench.STEPS, help="of a stage")
    parser.add_argument("--first-stage", action="store_true", help="prune, and go no further")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options, options.overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        bench = Bench(options)
        for name in options.arms:
            for seed in options.seeds:
                (bench.prune if options.first_stage else bench.run)(name, seed)
    for text in (table(options.out), masks(options.out)):
        if text:
            print(text, end="\n\n")


if __name__ == "__main__":
    main()
