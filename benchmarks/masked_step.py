"""Time and peak memory of a masked training step against the stock Transformers model's plain step.

All run the same batch in one process, in turn, on the same threads; the ratios are what counts. A
step is forward, loss, backward and AdamW. Beside the stock model with its own loss stands this
project's step without masks, so that what masks cost is not hidden by what the loss saves.

    python benchmarks/masked_step.py [--rows 16] [--length 256] [--rounds 15] [--family llama]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.families import family_of
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks, PruningSettings
from llmshearing.pruning.schedule import MaskState

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
Loss = Callable[[], Tensor]


def decoder(family: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE, attn_implementation="sdpa")
    return AutoModelForCausalLM.from_config(config).train()


def stock(family: str, batch: dict[str, Tensor]) -> tuple[nn.Module, Loss]:
    model = decoder(family)
    inputs = {"input_ids": batch["input_ids"], "labels": batch["labels"], "use_cache": False}
    return model, lambda: model(**inputs).loss


def shearing(family: str, batch: dict[str, Tensor], masked: bool) -> tuple[nn.Module, Loss]:
    inner, masks = decoder(family), None
    if masked:
        config = inner.config.to_dict()
        table = family_of(config).table(config)
        target = replace(table.source, hidden=128, layers=6, heads=4, kv_groups=4, intermediate=344)
        masks = Masks(table, target, PruningSettings(), seed=0)
    model = ShearingModel(inner, masks, domains=7).train()

    def loss() -> Tensor:
        if model.masks is not None:
            model.masks.set_state(MaskState(model.masks.state.step + 1, 0.5))
        return model.loss(model(batch), batch)["total"]

    return model, loss


class Step:
    """One way to train, with the seconds of its steps."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.loss = loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.seconds: list[float] = []

    def run(self) -> None:
        started = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - started)

    def peak(self) -> int:
        """Highest number of bytes in tensors during a step, above what stands between steps."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.run()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        changes = [event for event in events if event["name"] == "[memory]"]
        now = highest = 0
        for change in sorted(changes, key=lambda event: event["ts"]):
            now += change["args"]["Bytes"]
            highest = max(highest, now)
        return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--family", default="llama", help="model_type, multi-head attention")
    options = parser.parse_args()
    tokens = torch.randint(0, SHAPE["vocab_size"], (options.rows, options.length))
    batch = {"input_ids": tokens, "labels": tokens, "domain": torch.arange(options.rows) % 7}
    steps = {
        "stock model": Step(*stock(options.family, batch)),
        "without masks": Step(*shearing(options.family, batch, masked=False)),
        "masked": Step(*shearing(options.family, batch, masked=True)),
    }
    for step in steps.values():
        step.run()  # the optimizer's state appears
        step.seconds.clear()
    for _ in range(options.rounds):
        for step in steps.values():
            step.run()
    print(
        f"{options.family}, {torch.get_num_threads()} threads, {options.rows} rows of "
        f"{options.length} tokens, {options.rounds} rounds"
    )
    seconds = {name: list(step.seconds) for name, step in steps.items()}
    peaks = {name: step.peak() for name, step in steps.items()}
    for name in steps:
        median = statistics.median(seconds[name])
        print(f"{name:14}{median:8.3f} s{peaks[name] / 2**20:9.1f} MiB above what stands")
    for other in ("stock model", "without masks"):
        pairs = zip(seconds["masked"], seconds[other], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        memory = peaks["masked"] / peaks[other]
        print(f"masked over {other}: {ratio:.3f} in time, {memory:.3f} in peak memory")


if __name__ == "__main__":
    main()
