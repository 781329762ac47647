"""Losses of 20 steps of each stage, next to the ones in the text files of this folder.

A change that claims to change no numbers leaves these files as they are. After a change that is
meant to change them, look at the difference, then rewrite them:

    GOLDEN_LOSSES=write python -m pytest tests/golden

On the stack that wrote a file (torch version and processor, in its first line) every digit must
agree. On any other stack the values must agree within 1e-5: torch picks its kernels by the
processor's model, and sums in another order differ in the last digit.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from llmshearing import preflight
from llmshearing.export.export import export
from llmshearing.progress import set_up_log
from llmshearing.train import build_trainer

FOLDER = Path(__file__).parent
ACROSS_STACKS = 1e-5
STEPS = 20


def processor() -> str:
    """Vendor, family and model of the processor: names like `Xeon` cover several generations."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    fields = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.+)$", info.read_text(), re.M))
    return " ".join([*fields.values(), torch.backends.cpu.get_cpu_capability()])


STACK = f"# torch {torch.__version__.split('+')[0]} {processor()}"


class LossRecorder(Callback):
    """Collects `step name value` of every training loss and every held-out loss."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], float] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        losses = state.total_loss_dict
        self._add(state, {f"train/{name.rpartition('/')[2]}": losses[name] for name in losses})

    def eval_after_all(self, state: State, logger: Logger) -> None:
        metrics = state.eval_metrics
        self._add(state, {f"held_out/{name}": metrics[name]["loss"].compute() for name in metrics})

    def _add(self, state: State, values: dict[str, torch.Tensor]) -> None:
        step = state.timestamp.batch.value
        self.values |= {(step, name): float(value) for name, value in values.items()}


def train(recipe: Path, *overrides: str) -> dict[tuple[int, str], float]:
    """The losses of one run, which is left in its directory."""
    checked, inputs = preflight.resolve(recipe, overrides)
    set_up_log(Path(checked.run.directory), rank=0)
    recorder = LossRecorder()
    trainer = build_trainer(checked, inputs, extra_callbacks=[recorder])
    trainer.fit()
    trainer.close()
    return recorder.values


def check(name: str, found: dict[tuple[int, str], float]) -> None:
    """Compare with the golden file, or write it."""
    path = FOLDER / f"{name}.txt"
    lines = [f"{step:3} {what:<24} {value!r}" for (step, what), value in sorted(found.items())]
    if os.environ.get("GOLDEN_LOSSES") == "write":
        path.write_text("\n".join([STACK, *lines]) + "\n")
    stack, *golden = path.read_text().splitlines()
    if stack == STACK:
        assert lines == golden
        return
    expected = {(int(step), what): float(value) for step, what, value in map(str.split, golden)}
    assert found == pytest.approx(expected, abs=ACROSS_STACKS, rel=0)


@pytest.fixture(scope="module")
def pruned_run(recipe_file_at, tmp_path_factory) -> tuple[Path, dict[tuple[int, str], float]]:
    """A pruning run of all phases: warmup, sharpening, decision, frozen masks."""
    run = tmp_path_factory.mktemp("golden") / "prune"
    losses = train(recipe_file_at(run), f"run.duration={STEPS}ba", "run.eval_interval=10ba")
    return run, losses


def test_pruning_losses_are_the_golden_ones(pruned_run):
    check("prune", pruned_run[1])


def test_recovery_losses_are_the_golden_ones(pruned_run, recipe_file_at, tiny_tree, tmp_path):
    export(pruned_run[0], tmp_path / "pruned")
    recipe = json.loads(recipe_file_at(tmp_path / "continue").read_text())
    del recipe["target"]
    recipe["model"]["path"] = str(tmp_path / "pruned")
    recipe["run"] |= {"duration": f"{STEPS}ba", "eval_interval": "5ba"}
    recipe["data"]["split"] = "continue"
    references = tmp_path / "references.yaml"
    domains = sorted(path.name for path in (tiny_tree / "continue").iterdir() if path.is_dir())
    references.write_text(json.dumps({"losses": dict.fromkeys(domains, 4.0)}))
    recipe["mixture"] = {
        "policy": "paper",
        "references": str(references),
        "update_interval": "5ba",
        "prefetch": 0,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    check("continue", train(path))
