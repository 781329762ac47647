"""Everything that only a GPU can show, in one command and one table, in under nine minutes.

    make gpu-check MODEL=DIR TEXT=DIR
    python benchmarks/gpu_check.py --model DIR --text DIR [--device cpu] [--out FILE.md]

MODEL is a real model, e.g. SmolLM2-135M, and TEXT has a folder of text per domain of the RedPajama
sample. No network is used. The table goes into docs/experiments.md. `--device cpu` runs the same
lines at a small size; its numbers mean nothing.

The checks: the tests marked `gpu`; throughput, with masked against stock steps; the planned against
the measured peak; FSDP2 and torch.compile against one plain process; and a real model that is
pruned, exported and recovered in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plan_memory

ROOT = Path(__file__).parents[1]
LIMIT = {"cuda": 540, "cpu": 3600}  # seconds for everything
RECIPES = {name: ROOT / "yamls" / name for name in
           ("prune/smollm2-135m-to-50m.yaml", "continue/smollm2-50m.yaml")}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table; `good` is None where there is nothing to hold it against."""

    check: str
    found: str
    expected: str = "-"
    good: bool | None = None


class Checks:
    """The checks, on a GPU or at a small size on a CPU."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.cuda = options.device == "cuda"
        self.device, self.folder = options.device, folder
        self.model, self.text = options.model.absolute(), options.text.absolute()
        self.ends = time.monotonic() + LIMIT[options.device]
        hidden, layers = (2048, 16) if self.cuda else (128, 2)
        plan_memory.TARGET = {"hidden": hidden // 2, "layers": layers, "heads": hidden // 128,
                              "intermediate": hidden}  # fmt: skip
        self.size = (hidden, layers)
        self.precision = "amp_bf16" if self.cuda else "fp32"

    def run(self, *words: object, ok: tuple[int, ...] = (0,)) -> str:
        """A command's output; it ends with the time for everything."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True,
            text=True, timeout=max(1.0, self.ends - time.monotonic()), check=False,
        )  # fmt: skip
        if done.returncode not in ok:
            raise RuntimeError(f"{words[:4]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def train(self, recipe: Path, directory: str, *given: str, ranks: int = 1) -> dict[str, Any]:
        """Train in processes of their own; losses by step, seconds of a step, and peak bytes."""
        out = self.folder / directory
        words = [__file__, "--train", recipe, f"run.directory={out}",
                 f"model.precision={self.precision}", *given]  # fmt: skip
        if ranks > 1:
            launcher = Path(sys.executable).with_name("composer")
            self.run(launcher, "-n", ranks, *words)
        else:
            self.run(*words)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found = {"losses": values(lines, "loss/train/ce")}
        rates = values(lines, "throughput/tokens_per_second")[1:]
        return found | {"rate": max(rates, default=0.0)} | json.loads((out / "peak").read_text())

    def tests(self) -> list[Row]:
        """The tests that need a GPU; those of two ranks need two."""
        output = self.run("-m", "pytest", "-q", "-m", "gpu", "--timeout=200", "tests/distributed",
                          *([] if self.two else ["--collect-only"]))  # fmt: skip
        return [Row("tests marked gpu", output.strip().splitlines()[-1],
                    "all pass" if self.two else "collected only: they need 2 GPUs",
                    True if self.two else None)]  # fmt: skip

    def throughput(self) -> list[Row]:
        """Both stages and the stock model, and what masks cost."""
        small = ("--shape", "tiny", "--device", "cpu", "--rows", 2, "--length", 32, "--steps", 2)
        output = self.run(
            ROOT / "benchmarks/gpu_throughput.py", *(("--steps", 6) if self.cuda else small)
        )
        rows = [
            [cell.strip() for cell in line.strip("| ").split("|")]
            for line in output.splitlines()
            if re.match(r"\| (370m|1.3b|tiny) ", line)
        ]
        assert len(rows) % 3 == 0, output
        assert rows, output
        return [
            Row(f"step of {shape}, {kind}", f"{rate} tokens/s, MFU {mfu}, peak {peak} GiB, "
                f"{ratio} of stock", "masked at most 1.3 of stock" if kind == "prune" else "-",
                float(ratio) <= 1.3 if kind == "prune" and self.cuda else None)
            for shape, kind, rate, mfu, _, ratio, peak in rows
        ]  # fmt: skip

    def memory(self) -> list[Row]:
        """The plan against the allocator, or on a CPU against the kernel."""
        import torch

        from llmshearing.planning.devices import device_of
        from llmshearing.planning.plan import Machine, make_plan

        total = torch.cuda.mem_get_info()[1] / 2**30 if self.cuda else None
        device = device_of(None if self.cuda else "cpu", total)
        rows = []
        for name in ("plain", "masked, recomputed"):
            recipe = plan_memory.write_recipe(name, self.folder, *self.size)
            given = [f"model.precision={self.precision}"]
            planned = make_plan(recipe, given, Machine(device, 1)).memory.peak.total / 2**30
            measured = self.train(recipe, name.replace(", ", "-"))["peak"] / 2**30
            ratio = planned / measured
            rows.append(Row(f"peak memory, {name}", f"{measured:.2f} GiB, planned {planned:.2f}",
                            "planned 1.0 to 1.3 of it",
                            1.0 <= ratio <= 1.3 if self.cuda else None))  # fmt: skip
        return rows

    def fsdp2(self) -> list[Row]:
        """Sharded training against one process; on one GPU the sharded model on one rank."""
        recipe = plan_memory.write_recipe("masked", self.folder, *self.size)
        steps = ("run.duration=4ba", "run.eval_interval=4ba")
        alone = self.train(recipe, "alone", *steps)
        one = json.loads(self.run(__file__, "--shard", self.device).splitlines()[-1])
        rows = [compared("FSDP2, model sharded on 1 rank", one["sharded"], one["whole"])]
        if self.two or not self.cuda:
            sharded = self.train(recipe, "sharded", *steps, "parallelism=fsdp2",
                                 "data.microbatch=1", ranks=2)  # fmt: skip
            rows.append(compared("FSDP2, 2 ranks", sharded["losses"], alone["losses"]))
        return rows

    def compiled(self) -> list[Row]:
        """Compiled blocks against plain ones."""
        recipe = plan_memory.write_recipe("masked", self.folder, *self.size)
        steps = ("run.duration=8ba", "run.eval_interval=8ba")
        plain = self.train(recipe, "plain-blocks", *steps)
        found = self.train(recipe, "compiled", *steps, "model.compile=true")
        return [
            compared("torch.compile", found["losses"], plain["losses"]),
            Row("torch.compile, speed", f"{found['rate'] / plain['rate']:.2f} of plain steps"),
        ]

    def real_model(self) -> list[Row]:
        """Prune, export and recover a real model."""
        length, steps, rows = (512, 150, 16) if self.cuda else (64, 4, 2)
        data, out = self.folder / "rows", self.folder / "out"  # "data" has the random rows
        llmshearing = ("-m", "llmshearing.cli")
        self.run(*llmshearing, "prepare", ROOT / "yamls/data/redpajama-sample.yaml",
                 f"source={self.text}", f"tokenizer={self.model}", f"output={data}",
                 f"sequence_length={length}")  # fmt: skip
        given = [
            f"data.root={data}", f"run.duration={steps}ba", f"run.eval_interval={steps}ba",
            f"run.checkpoint_interval={steps}ba", f"data.global_batch={rows}",
            f"data.microbatch={rows}", "data.eval_rows=2", "run.log_interval=1ba",
            "parallelism=ddp",
        ]  # fmt: skip
        losses = {"source": self.loss(self.model, data)}
        prune, recover = RECIPES.values()
        self.train(prune, "prune", f"model.path={self.model}", *given)
        verified = self.run(*llmshearing, "export", self.folder / "prune", out / "pruned",
                            "--dtype", "bfloat16", "--allow-undecided")  # fmt: skip
        losses["cut"] = self.loss(out / "pruned", data)
        self.train(recover, "recover", f"model.path={out / 'pruned'}", *given)
        self.run(*llmshearing, "export", self.folder / "recover", out / "recovered",
                 "--dtype", "bfloat16")  # fmt: skip
        losses["recovered"] = self.loss(out / "recovered", data)
        found = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        better = losses["source"] < losses["recovered"] < losses["cut"]
        return [
            Row("real model in bf16: held-out loss", found, "source < recovered < cut",
                better if self.cuda else None),
            Row("real model: export", verified.strip().splitlines()[-1], "verified",
                "verified: logits" in verified),
        ]  # fmt: skip

    def loss(self, model: Path, data: Path) -> float:
        file = self.folder / "loss.json"
        self.run("-m", "llmshearing.cli", "evaluate", model, "--data", data / "eval", "--rows",
                 16 if self.cuda else 1, "--json", file)  # fmt: skip
        return json.loads(file.read_text())["mean_loss"]

    @property
    def two(self) -> bool:
        """Whether there are two GPUs."""
        import torch

        return torch.cuda.device_count() > 1


def values(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line["metrics"][name] for line in lines if name in line["metrics"]]


def compared(check: str, found: list[float], expected: list[float]) -> Row:
    """Losses of two ways to train, which may differ by the rounding of bf16."""
    difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    return Row(check, f"losses within {difference:.1e}", "within 2e-2", difference <= 2e-2)


def train(arguments: list[str]) -> None:
    """Train in this process, and write the peak of its memory next to its run."""
    import torch
    from composer.utils import dist

    from llmshearing import parallelism, preflight
    from llmshearing.progress import set_up_log
    from llmshearing.train import build_trainer

    recipe, inputs = preflight.resolve(arguments[0], arguments[1:], dist.get_world_size())
    parallelism.join_ranks(recipe)
    set_up_log(Path(recipe.run.directory), dist.get_global_rank())
    before = plan_memory.status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again
    trainer = build_trainer(recipe, inputs)
    trainer.fit()
    trainer.close()
    peak = plan_memory.status("VmHWM") - before
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    if dist.get_global_rank() == 0:
        (Path(recipe.run.directory) / "peak").write_text(json.dumps({"peak": peak}))


def shard(device: str) -> None:
    """Print the losses of a model, whole and sharded by FSDP2 on one rank."""
    import gpu_throughput
    import torch
    from torch.distributed.fsdp import fully_shard

    from llmshearing import substrate

    options = argparse.Namespace(length=64, device=device, recompute=False)
    store = torch.distributed.HashStore()
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    substrate.average_gradients_on_gloo()
    found: dict[str, list[float]] = {}
    for kind in ("whole", "sharded"):
        model, loss_of = gpu_throughput.build("tiny", "continue", options)
        if kind == "sharded":
            for block in model.model.model.layers:
                fully_shard(block)
            fully_shard(model.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        tokens = torch.arange(128, device=device).view(2, 64)
        domain = torch.zeros(2, dtype=torch.long, device=device)
        found[kind] = []
        for _ in range(3):
            loss = loss_of({"input_ids": tokens, "labels": tokens, "domain": domain})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[kind].append(loss.item())
    print(json.dumps(found))
    torch.distributed.destroy_process_group()


def report(rows: list[Row], seconds: float) -> str:
    """The table as it stands in docs/experiments.md."""
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, small size"
    marks = {True: "yes", False: "**NO**", None: "-"}
    return "\n".join(
        [
            f"{device}; torch {torch.__version__}, transformers {transformers.__version__}, Python "
            f"{platform.python_version()}; {seconds:.0f} s in all.",
            "",
            "| check | found | expected | as expected |",
            "|---|---|---|---|",
            *(f"| {r.check} | {r.found} | {r.expected} | {marks[r.good]} |" for r in rows),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    shared = Path(os.environ.get("LLMSHEARING_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", type=Path, required=True, help="a real model's directory")
    parser.add_argument("--text", type=Path, default=shared / "data/redpajama-sample")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("error: found no GPU; run it where one is, or try it with --device cpu\n")
        return 2
    for path, file in ((options.model, "config.json"), (options.text, ".")):
        if not (path / file).exists():
            sys.stderr.write(f"error: found no {path / file}: give --model and --text\n")
            return 2
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        checks = Checks(options, Path(folder))
        parts: list[Callable[[], list[Row]]] = [
            checks.tests, checks.throughput, checks.memory, checks.fsdp2, checks.compiled,
            checks.real_model,
        ]  # fmt: skip
        for part in parts:
            begun = time.monotonic()
            try:
                rows += part()
            except Exception as error:  # one check that fails must not hide the others
                rows.append(Row(part.__name__, f"{type(error).__name__}", "to run", good=False))
                sys.stderr.write(f"{part.__name__}: {error}\n")
            sys.stderr.write(f"{part.__name__}: {time.monotonic() - begun:.0f} s\n")
    text = report(rows, time.monotonic() - started)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return int(any(row.good is False for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
    elif sys.argv[1:2] == ["--shard"]:
        shard(sys.argv[2])
    else:
        sys.exit(main())
