"""Ways to cut a model, compared at equal compute: the real bench, and the small one.

    python benchmarks/real_model.py MODEL DATA OUT [key=value ...] [--teraflop 15 60 240]
        [--target 50M] [--arms oneshot oneshot-kl ...] [--seeds 17] [--equal-tokens]
        [--searched search/best.yaml] [--tasks FOLDER --limit 200]

`MODEL` is a directory of SmolLM2-135M (of tiny-llama with `--target 2.2M`), `DATA` a tree made of
the sample by `yamls/data/redpajama-sample.yaml` with the model's tokenizer. Every arm may spend the
same number of operations, in all its parts: the importance pass, masked steps at the source's cost,
forward passes of the teacher, and recovery at the target's cost. Operations are counted by
`architecture/flops.py`; a forward pass is a third of a training step. With `--equal-tokens` the
teacher is not counted, so an arm that distils reads as many tokens as one that does not. What is
finished in `OUT` is kept; `--table` prints it without running anything.

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

ROW = 256  # tokens


@dataclass(frozen=True)
class Cut:
    """What a model is cut to, and how it is trained meanwhile.

    Attributes:
        shape: the given shape.
        prune: the recipe of the masks' stage.
        recover: the recipe of continued training.
        rows: of a step.
        importance_rows: of the importance pass; at most 1.4 % of the smallest budget.
        masks: share of the compute that learned masks get.
        first: further settings of the masks' stage.
    """

    shape: dict[str, int]
    prune: str = "yamls/prune/smollm2-135m-to-50m.yaml"
    recover: str = "yamls/continue/smollm2-50m.yaml"
    rows: int = 4
    importance_rows: int = 28
    masks: float = 0.5
    first: dict[str, object] = field(default_factory=dict)


TARGETS = {
    "50M": Cut({"hidden": 384, "layers": 20, "heads": 6, "kv_groups": 2, "intermediate": 1024}),
    "90M": Cut({"hidden": 512, "layers": 24, "heads": 9, "kv_groups": 3, "intermediate": 1280}),
    "2.2M": Cut(
        {"hidden": 128, "layers": 6, "heads": 4, "intermediate": 344},
        small_bench.PRUNE,
        small_bench.CONTINUE,
        rows=8,
        importance_rows=64,
        masks=0.8,
        first={"pruning.warmup": "0.2dur"},
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to spend the compute.

    Attributes:
        masks: whether masks are learned; otherwise the model is cut at once by importance.
        first: further settings of the masks' stage. Arms with the same ones share that stage.
        second: further settings of recovery.
        shape: `given`, `searched` (`--searched`, whose own compute is not counted), or `own` of
            masks that choose it within the parameters of the given one.
    """

    masks: bool = False
    first: dict[str, object] = field(default_factory=dict)
    second: dict[str, object] = field(default_factory=dict)
    shape: str = "given"


KL = {"distillation.weight": 1.0}
HALF = {"distillation.weight": 0.5}
# What is distilled: the first stage, the second, or both (`-kl`, `-half`).
ARMS = {
    "oneshot": Arm(),
    "oneshot-half": Arm(second=HALF),
    "oneshot-kl": Arm(second=KL),
    "oneshot-searched": Arm(shape="searched"),
    "oneshot-searched-half": Arm(second=HALF, shape="searched"),
    "oneshot-searched-kl": Arm(second=KL, shape="searched"),
    "masks": Arm(masks=True),
    "masks-half": Arm(masks=True, first=HALF, second=HALF),
    "masks-half-first": Arm(masks=True, first=HALF),
    "masks-half-second": Arm(masks=True, second=HALF),
    "masks-kl": Arm(masks=True, first=KL, second=KL),
    "masks-kl-first": Arm(masks=True, first=KL),
    "masks-kl-second": Arm(masks=True, second=KL),
    "masks-equal-start": Arm(masks=True, first={"pruning.start": "uniform"}),
    "masks-own-shape": Arm(masks=True, shape="own"),
    "masks-own-shape-kl": Arm(masks=True, first=KL, second=KL, shape="own"),
    "masks-own-shape-kl-first": Arm(masks=True, first=KL, shape="own"),
    "scratch": Arm(second={"model.initialize": "random", "optimizer.learning_rate": 1e-3}),
}


class Bench:
    """Runs arms in a folder, each stage by the command that a user would type."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.cuts = options.out / f"{options.target}-cuts"
        self.target: Cut = TARGETS[options.target]
        self.full, self.parameters = self.cost(options.model), self.parameter_count()

    def parameter_count(self) -> int:
        table = read_source(self.options.model).table
        shape, errors = resolve_shape(table, TargetSettings(**self.target.shape))
        assert not errors, errors
        return table.parameter_count(shape)

    def cost(self, model: Path) -> float:
        """Operations of a training step on one row."""
        return training_flops_per_token(read_source(model).table, ROW) * ROW

    def shape(self, arm: Arm) -> dict[str, int]:
        if arm.shape == "searched":
            return yaml.safe_load(self.options.searched.read_text())["target"]
        return {"parameters": self.parameters} if arm.shape == "own" else self.target.shape

    def run(self, name: str, teraflop: float, seed: int) -> None:
        arm = ARMS[name]
        equal = "-tokens" if self.options.equal_tokens else ""
        folder = self.out / f"{self.options.target}-{teraflop:g}{equal}" / f"{name}-{seed}"
        if (folder / "result.json").is_file():
            return
        left, first = teraflop * 1e12, 0
        if arm.first.get("pruning.start") != "uniform":
            left -= self.target.importance_rows * self.full / 3
        if arm.masks:
            cost = self.target.rows * (self.full + self.teacher_cost(arm.first))
            first = round(self.target.masks * left / cost)
            left -= first * cost
            cut = self.learn_masks(arm, first, seed)
        else:
            cut = self.cut_at_once(arm)
        cost = self.target.rows * (self.cost(cut) + self.teacher_cost(arm.second))
        second = max(1, round(left / cost))
        settings = self.settings(folder / "continue", seed, second) | {"model.path": cut}
        settings |= self.teacher(arm.second) | arm.second
        small_bench.train(self.target.recover, settings, self.options.overrides)
        small_bench.export(folder / "continue", folder / "final")
        result = {"steps": [first, second], "cut": self.evaluate(cut)}
        result["final"] = self.evaluate(folder / "final")
        (folder / "result.json").write_text(json.dumps(result, indent=1))

    def learn_masks(self, arm: Arm, steps: int, seed: int) -> Path:
        """The model cut by masks; one folder for all arms with the same first stage."""
        what = [f"{key.partition('.')[2]}={value}" for key, value in arm.first.items()]
        name = "-".join(map(str, ("masks", *what, arm.shape, steps, seed)))
        run, cut = (self.cuts / name / part for part in ("run", "cut"))
        shape = self.shape(arm)
        settings = self.settings(run, seed, steps) | {"model.path": self.options.model}
        settings |= {f"target.{axis}": "null" for axis in self.target.shape if axis not in shape}
        settings |= {f"target.{key}": value for key, value in shape.items()}
        if arm.first.get("pruning.start") != "uniform":
            settings["pruning.importance"] = self.scores()
        settings |= self.teacher(arm.first) | self.target.first | arm.first
        small_bench.train(self.target.prune, settings, [])
        small_bench.export(run, cut)
        return cut

    def cut_at_once(self, arm: Arm) -> Path:
        out = self.cuts / f"oneshot-{arm.shape}" / "cut"
        if not (out / "llmshearing.json").is_file():
            shape = [f"{axis}={size}" for axis, size in self.shape(arm).items()]
            how = ["--importance", self.scores()]
            small_bench.verb("prune-oneshot", self.options.model, out, "--target", *shape, *how)
        return out

    def scores(self) -> Path:
        path = self.out / "importance.safetensors"
        if not path.is_file():
            words = ["importance", self.options.model, "--data", self.options.data / "prune"]
            small_bench.verb(*words, "--rows", self.target.importance_rows, "--out", path)
        return path

    def teacher_cost(self, stage: dict[str, object]) -> float:
        counted = "distillation.weight" in stage and not self.options.equal_tokens
        return self.full / 3 if counted else 0

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
        rows = {f"data.{name}": self.target.rows for name in ("global_batch", "microbatch")}
        return small_bench.settings(self.options.data, run, seed, steps, eval_rows=4) | rows


def table(out: Path) -> Table:
    """Every arm that has finished, over its seeds."""
    rows = []
    found = {path.parents[1] for path in out.glob("*/*/result.json")}
    for folder in sorted(found, key=lambda path: float(path.name.split("-")[1])):
        target, teraflop, *equal = folder.name.split("-")
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
            rows.append(
                (target, " ".join([teraflop, *equal]), name, str(len(results)), steps, *losses)
            )
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
    parser.add_argument("--equal-tokens", action="store_true", help="do not count the teacher")
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
