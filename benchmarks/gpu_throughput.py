"""Tokens per second and MFU of both stages on one GPU, and of a masked against a plain stock step.

    python benchmarks/gpu_throughput.py [--shape 370m 1.3b] [--rows 8] [--length 4096] [--steps 10]
    python benchmarks/gpu_throughput.py --shape tiny --device cpu --rows 2 --length 32 --steps 2

Steps are full training steps of the shape (forward, loss, backward, AdamW) in bf16 with weights,
masks and optimizer state in float32: `stock` is the Transformers model with its own loss,
`continue` the second stage, `prune` the first, in which the shape is the source and half of it the
target. All three of a shape take the same rows, one after the other, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.families import family_of
from llmshearing.architecture.flops import FORMULA, peak_flops, training_flops_per_token
from llmshearing.config import ModelSettings
from llmshearing.models.blocks import recompute_blocks
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskState
from llmshearing.pruning.settings import PruningSettings

# hidden, heads, layers, intermediate, vocabulary; `tiny` is there to try the script
SHAPES = {
    "tiny": (64, 4, 2, 160, 500),
    "370m": (1024, 8, 24, 2816, 32000),
    "1.3b": (2048, 16, 24, 5504, 32000),
}
KINDS = ("stock", "continue", "prune")


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    shape: str
    kind: str
    tokens_per_second: float
    mfu: float | None
    seconds: float
    peak_gib: float | None


def config_of(shape: str, length: int):
    hidden, heads, layers, intermediate, vocabulary = SHAPES[shape]
    return AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        attn_implementation="sdpa",
    )


def build(shape: str, kind: str, options: argparse.Namespace) -> tuple[torch.nn.Module, Callable]:
    """A model and the function from a batch to its loss."""
    torch.manual_seed(0)
    config = config_of(shape, options.length)
    with torch.device(options.device):
        decoder = AutoModelForCausalLM.from_config(config).train()
    if options.recompute:
        recompute_blocks(decoder)
    if kind == "stock":
        return (
            decoder,
            lambda batch: (
                decoder(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss
            ),
        )
    masks = None
    if kind == "prune":
        table = family_of(config.to_dict()).table(config.to_dict())
        source = table.source
        target = replace(
            source,
            hidden=source.hidden // 2,
            heads=source.heads // 2,
            kv_groups=source.kv_groups // 2,
            layers=source.layers // 2,
            intermediate=source.intermediate // 2,
        )
        masks = Masks(table, target, PruningSettings(), seed=0)
    model = (
        ShearingModel(decoder, masks, 7, ModelSettings(path=".").loss_chunk)
        .to(options.device)
        .train()
    )
    return model, lambda batch: model.loss(model(batch), batch)["total"]


def measure(shape: str, kind: str, options: argparse.Namespace) -> Result:
    """Median time of a step after some that warm up."""
    model, loss_of = build(shape, kind, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    size = (options.rows, options.length)
    tokens = torch.randint(0, SHAPES[shape][-1], size, device=options.device)
    domain = torch.arange(options.rows, device=options.device) % 7
    batch = {"input_ids": tokens, "labels": tokens, "domain": domain}
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for number in range(options.warmup + options.steps):
        started = time.perf_counter()
        if isinstance(model, ShearingModel) and model.masks is not None:
            model.masks.set_state(MaskState(number + 1, 0.5))
        with torch.autocast(options.device, torch.bfloat16, enabled=cuda):
            loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[options.warmup :])
    rate = tokens.numel() / seconds
    config = config_of(shape, options.length).to_dict()
    flops = training_flops_per_token(family_of(config).table(config), options.length)
    peak = peak_flops(torch.cuda.get_device_name()) if cuda else None
    return Result(
        shape,
        kind,
        rate,
        rate * flops / peak if peak else None,
        seconds,
        torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    )


def table(results: list[Result]) -> str:
    """Rows as they stand in docs/experiments.md."""
    lines = [
        "| shape | step | tokens/s | MFU | s a step | of stock | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    stock = {r.shape: r.seconds for r in results if r.kind == "stock"}
    for r in results:
        mfu = "-" if r.mfu is None else f"{r.mfu:.3f}"
        ratio = f"{r.seconds / stock[r.shape]:.3f}" if r.shape in stock else "-"
        peak = "-" if r.peak_gib is None else f"{r.peak_gib:.1f}"
        lines.append(
            f"| {r.shape} | {r.kind} | {r.tokens_per_second:,.0f} | {mfu} | {r.seconds:.4f} "
            f"| {ratio} | {peak} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["370m", "1.3b"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--no-recompute", dest="recompute", action="store_false")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "error: found no GPU, which this benchmark measures; run it where one is, or try the "
            "script with --shape tiny --device cpu\n"
        )
        return 2
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu, float32"
    print(f"{name}; {options.rows} rows of {options.length} tokens; MFU = {FORMULA}", flush=True)
    results = []
    for shape in options.shape:
        for kind in KINDS:
            results.append(measure(shape, kind, options))
            if options.device == "cuda":
                torch.cuda.empty_cache()
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
