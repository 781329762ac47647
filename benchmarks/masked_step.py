"""Time and peak memory of a masked training step against the stock model's plain step.

Both run the same batch in one process, in turn, on the same threads; the ratio is what counts.

    python benchmarks/masked_step.py [--rows 16] [--length 256] [--pairs 15]
        [--family llama]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.families import family_of
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks, PruningSettings
from llmshearing.pruning.schedule import Moment

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def build(family: str, masked: bool) -> tuple[ShearingModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE, attn_implementation="sdpa")
    decoder = AutoModelForCausalLM.from_config(config)
    masks = None
    if masked:
        table = family_of(config.to_dict()).table(config.to_dict())
        target = replace(table.source, hidden=128, layers=6, heads=4, kv_groups=4, intermediate=344)
        masks = Masks(table, target, PruningSettings(), seed=0)
    model = ShearingModel(decoder, masks, domains=7).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def step(model, optimizer, batch) -> float:
    started = time.perf_counter()
    if model.masks is not None:
        model.masks.set_progress(Moment(model.masks.moment.step + 1, 0.5))
    losses = model.loss(model(batch), batch)
    losses["total"].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def activation_bytes(model, batch) -> int:
    """Bytes that the graph of one forward keeps alive for the backward pass."""
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(model(batch), batch)["total"]
    del loss
    return sum(saved.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--family", default="llama", help="model_type, multi-head attention")
    options = parser.parse_args()
    tokens = torch.randint(0, SHAPE["vocab_size"], (options.rows, options.length))
    batch = {"input_ids": tokens, "labels": tokens, "domain": torch.arange(options.rows) % 7}
    plain, masked = (build(options.family, masked) for masked in (False, True))
    for pair in (plain, masked):
        step(*pair, batch)
    times = [(step(*plain, batch), step(*masked, batch)) for _ in range(options.pairs)]
    ratio = statistics.median(b / a for a, b in times)
    kept = [activation_bytes(model, batch) for model, _ in (plain, masked)]
    print(f"threads {torch.get_num_threads()}, {options.rows} rows of {options.length} tokens")
    print(f"plain step   {statistics.median(a for a, _ in times):.3f} s  {kept[0] / 2**20:.1f} MiB")
    print(f"masked step  {statistics.median(b for _, b in times):.3f} s  {kept[1] / 2**20:.1f} MiB")
    print(f"ratio        {ratio:.3f}    {kept[1] / kept[0]:.3f}")


if __name__ == "__main__":
    main()
