"""The real bench: ways to cut SmolLM2-135M, compared at equal compute.

    python benchmarks/real_model.py MODEL DATA OUT [key=value ...] [--teraflop 15 60 240]
        [--target 50M] [--arms oneshot oneshot-kl ...] [--seeds 17] [--tasks FOLDER --limit 200]
        [--searched search/best.yaml]

`MODEL` is a directory of SmolLM2-135M, `DATA` a tree made of the sample by
`yamls/data/redpajama-sample.yaml` with the model's tokenizer. Every arm may spend the same number
of operations, in all its parts: the importance pass, masked steps at the source's cost, forward
passes of the teacher, and recovery at the target's cost. Operations are counted by
`architecture/flops.py`; a forward pass is a third of a training step. What is finished in `OUT` is
kept; `--table` prints it without running anything.

Losses are means over the domains, of exported models, on `--eval-rows` held-out rows a domain.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import small_bench
import yaml

from llmshearing.architecture.flops import training_flops_per_token
from llmshearing.architecture.target import TargetSettings, resolve_shape
from llmshearing.huggingface.source import read_source
from llmshearing.tables import Table

PRUNE = "yamls/prune/smollm2-135m-to-50m.yaml"
CONTINUE = "yamls/continue/smollm2-50m.yaml"
ROW, ROWS = 256, 4  # tokens of a row, rows of a step
IMPORTANCE_ROWS = 28  # 0.7 % of the smallest budget
TARGETS = {
    "50M": {"hidden": 384, "layers": 20, "heads": 6, "kv_groups": 2, "intermediate": 1024},
    "90M": {"hidden": 512, "layers": 24, "heads": 9, "kv_groups": 3, "intermediate": 1280},
}


@dataclass(frozen=True)
class Arm:
    """One way to spend the compute.

    Attributes:
        masks: share of the compute that the masks' stage gets; 0 cuts at once by importance.
        first: further settings of the masks' stage.
        second: further settings of recovery.
        scores: whether the masks' stage reads importance scores.
        shape: `given`, `searched` (`--searched`, whose own compute is not counted), or `own` of
            masks that choose it within the parameters of the given one.
    """

    masks: float = 0.0
    first: dict[str, object] = field(default_factory=dict)
    second: dict[str, object] = field(default_factory=dict)
    scores: bool = False
    shape: str = "given"


KL = {"distillation.weight": 1.0}
HALF = {"distillation.weight": 0.5}
ARMS = {
    "oneshot": Arm(),
    "oneshot-half": Arm(second=HALF),
    "oneshot-kl": Arm(second=KL),
    "oneshot-searched": Arm(shape="searched"),
    "oneshot-searched-half": Arm(second=HALF, shape="searched"),
    "masks": Arm(masks=0.5, scores=True),
    "masks-equal-start": Arm(masks=0.5, first={"pruning.start": "uniform"}),
    "masks-kl": Arm(masks=0.5, scores=True, first=KL, second=KL),
    "masks-kl-ce": Arm(masks=0.5, scores=True, first=KL),
    "masks-own-shape": Arm(masks=0.5, scores=True, shape="own"),
    "masks-own-shape-kl-ce": Arm(masks=0.5, scores=True, first=KL, shape="own"),
    "scratch": Arm(second={"model.initialize": "random", "optimizer.learning_rate": 1e-3}),
}


class Bench:
    """Runs arms in a folder, each stage by the command that a user would type."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.given = TARGETS[options.target]
        self.full, self.parameters = self.cost(options.model), self.parameter_count()

    def parameter_count(self) -> int:
        table = read_source(self.options.model).table
        shape, errors = resolve_shape(table, TargetSettings(**self.given))
        assert not errors, errors
        return table.parameter_count(shape)

    def cost(self, model: Path) -> float:
        """Operations of a training step on one row."""
        return training_flops_per_token(read_source(model).table, ROW) * ROW

    def target(self, arm: Arm) -> dict[str, int]:
        if arm.shape == "searched":
            return yaml.safe_load(self.options.searched.read_text())["target"]
        return {"parameters": self.parameters} if arm.shape == "own" else self.given

    def run(self, name: str, teraflop: float, seed: int) -> None:
        arm = ARMS[name]
        folder = self.options.out / f"{self.options.target}-{teraflop:g}" / f"{name}-{seed}"
        if (folder / "result.json").is_file():
            return
        left, first = teraflop * 1e12, 0
        cut, final = folder / "cut", folder / "final"
        if not arm.masks or arm.scores:
            left -= IMPORTANCE_ROWS * self.full / 3
        if arm.masks:
            cost = ROWS * (self.full + self.teacher_cost(arm.first))
            first = round(arm.masks * left / cost)
            left -= first * cost
            self.learn_masks(arm, first, seed, folder / "prune", cut)
        else:
            self.cut_at_once(arm, cut)
        second = max(1, round(left / ROWS / (self.cost(cut) + self.teacher_cost(arm.second))))
        result: dict[str, object] = {"steps": [first, second], "cut": self.evaluate(cut)}
        settings = self.settings(folder / "continue", seed, second) | {"model.path": cut}
        small_bench.train(
            CONTINUE, settings | self.teacher(arm.second) | arm.second, self.options.overrides
        )
        small_bench.export(folder / "continue", final)
        result["final"] = self.evaluate(final)
        (folder / "result.json").write_text(json.dumps(result, indent=1))

    def learn_masks(self, arm: Arm, steps: int, seed: int, run: Path, cut: Path) -> None:
        settings = self.settings(run, seed, steps) | {"model.path": self.options.model}
        target = self.target(arm)
        settings |= {f"target.{axis}": "null" for axis in self.given if axis not in target}
        settings |= {f"target.{key}": value for key, value in target.items()}
        if arm.scores:
            settings["pruning.importance"] = self.scores()
        small_bench.train(PRUNE, settings | self.teacher(arm.first) | arm.first, [])
        small_bench.export(run, cut)

    def cut_at_once(self, arm: Arm, out: Path) -> None:
        if (out / "llmshearing.json").is_file():
            return
        target = [f"{axis}={size}" for axis, size in self.target(arm).items()]
        how = ["--importance", self.scores()]
        small_bench.verb("prune-oneshot", self.options.model, out, "--target", *target, *how)

    def scores(self) -> Path:
        path = self.options.out / "importance.safetensors"
        if not path.is_file():
            words = ["importance", self.options.model, "--data", self.options.data / "prune"]
            small_bench.verb(*words, "--rows", IMPORTANCE_ROWS, "--out", path)
        return path

    def teacher_cost(self, stage: dict[str, object]) -> float:
        return self.full / 3 if stage.get("distillation.weight", 0) else 0

    def teacher(self, stage: dict[str, object]) -> dict[str, object]:
        found = {"distillation.teacher": self.options.model}
        return found if "distillation.weight" in stage else {}

    def evaluate(self, model: Path) -> dict[str, object]:
        rows = self.options.eval_rows
        losses = small_bench.evaluate(model, self.options.data, rows)
        found: dict[str, object] = {"losses": losses}
        if self.options.tasks:
            path = model.with_suffix(".tasks.json")
            if not path.is_file():
                words = ["benchmark", model, "--documents", self.options.tasks, "--json", path]
                limit = ["--limit", self.options.limit] if self.options.limit else []
                small_bench.verb(*words, "--suite", "commonsense", *limit)
            scores = json.loads(path.read_text())
            found |= {"scores": scores["scores"], "errors": scores["standard_errors"]}
        return found

    def settings(self, run: Path, seed: int, steps: int) -> dict[str, object]:
        return small_bench.settings(self.options.data, run, seed, steps, eval_rows=4)


def table(out: Path) -> Table:
    """Every arm that has finished, over its seeds."""
    rows = []
    for folder in sorted(out.glob("*-*"), key=lambda path: float(path.name.rpartition("-")[2])):
        target, _, teraflop = folder.name.rpartition("-")
        for name in ARMS:
            paths = sorted(folder.glob(f"{name}-[0-9]*/result.json"))
            results = [json.loads(path.read_text()) for path in paths]
            if not results:
                continue
            losses = [
                small_bench.spread(
                    [statistics.mean(result[stage]["losses"].values()) for result in results]
                )
                for stage in ("cut", "final")
            ]
            steps = "+".join(map(str, results[0]["steps"]))
            rows.append((target, teraflop, name, str(len(results)), steps, *losses))
    heads = ("target", "TFLOP", "arm", "seeds", "steps", "after the cut", "after recovery")
    return Table("", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teraflop", type=float, nargs="+", default=[15.0, 60.0, 240.0])
    parser.add_argument("--target", choices=TARGETS, default="50M")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--eval-rows", type=int, default=24, help="of a domain; 0 for all")
    parser.add_argument("--searched", type=Path, help="recipe that `llmshearing search` wrote")
    parser.add_argument("--tasks", type=Path, help="folder of JSON lines to score abilities on")
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options, options.overrides = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        bench = Bench(options)
        for teraflop in options.teraflop:
            for seed in options.seeds:
                for name in options.arms:
                    bench.run(name, teraflop, seed)
    table(options.out).show()


if __name__ == "__main__":
    main()
