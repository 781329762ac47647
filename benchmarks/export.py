"""Time and memory of an export against copying its checkpoint and flushing the copy.

Builds a checkpoint of a LLaMA shape, once with masks that prune it and once without; exports each
in a process of its own. It holds next to no optimizer state, which export does not read: with it,
copying would take three times as long.

    python benchmarks/export.py [--gigabytes 2] [--repeats 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.data.schema import tokenizer_fingerprint

HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 2048, 5504, 16, 32000


def build_config(gigabytes: float) -> dict[str, Any]:
    """A LLaMA of as many layers as the size in float32 asks for."""
    layer = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
    layers = max(1, round((gigabytes * 1e9 / 4 - 2 * VOCABULARY * HIDDEN) / layer))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
    )
    return config.to_dict() | {"architectures": ["LlamaForCausalLM"]}


def build_run(folder: Path, config: dict[str, Any], masked: bool) -> Path:
    """A run directory with one checkpoint of random weights."""
    table = family_of(config).table(config)
    tokenizer = folder / "source"
    if not tokenizer.exists():
        write_tokenizer(tokenizer)
    source = table.source
    half = {"hidden": HIDDEN // 2, "heads": HEADS // 2, "kv_groups": HEADS // 2}
    target = replace(source, **half, intermediate=INTERMEDIATE // 2) if masked else None
    generator = torch.Generator().manual_seed(0)
    state = {
        f"model.{name}": torch.randn(size, generator=generator) / 50
        for name, size in table.tensor_shapes(source).items()
    }
    if target is not None:
        for axis, kept in table.sizes(target).items():
            state |= mask_logits(table, axis, kept)
    run = folder / ("masked" if masked else "plain")
    checkpoint = run / "checkpoints" / "ba1.pt"
    checkpoint.parent.mkdir(parents=True)
    moments = {name: torch.zeros(1 << 20) for name in ("exp_avg", "exp_avg_sq")}
    torch.save({"state": {"model": state, "optimizers": moments}}, checkpoint)
    manifest = {
        "recipe": {"pruning": {"distribution": "hard_concrete"}, "data": {"global_batch": 1}},
        "source": {"path": str(tokenizer), "config": config, "shape": asdict(source)},
        "target": None if target is None else asdict(target),
        "data": {
            "sequence_length": 1,
            "tokenizer": {"fingerprint": tokenizer_fingerprint(tokenizer)},
            "fingerprints": {},
        },
        "masks": {"sharpness": 1.0, "settled": False} if masked else None,
        "mixture": {},
        "tokens": 1,
        "batch": 1,
    }
    checkpoint.with_suffix(".json").write_text(json.dumps(manifest))
    return run


def mask_logits(table: CouplingTable, axis: Axis, kept: int) -> dict[str, torch.Tensor]:
    """Decided masks of an axis that shrinks."""
    units, layers = table.sizes(table.source)[axis], table.source.layers
    if kept == units:
        return {}
    logits = torch.full((layers, units) if axis.per_layer else (units,), -10.0)
    logits[..., ::2][..., :kept] = 10.0
    return {f"masks.log_alpha.{axis.value}": logits}


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    folder.mkdir()
    Tokenizer(models.WordLevel({"word": 0}, unk_token="word")).save(str(folder / "tokenizer.json"))


def copy(source: Path, out: Path) -> float:
    """Seconds to copy a file and flush the copy."""
    started = time.perf_counter()
    shutil.copyfile(source, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - started


def export_once(run: str, out: str, verify: str) -> None:
    """In a process of its own: seconds and memory of one export, as JSON."""
    from llmshearing.checkpoints.export import Options, export

    # Only now does the peak start from what the interpreter and the libraries take.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started = time.perf_counter()
    export(run, out, Options(verify=verify == "verify"))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "start": before, "peak": memory("VmHWM")}))


def memory(field: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def measure(run: Path, repeats: int, largest: int) -> None:
    checkpoint = run / "checkpoints" / "ba1.pt"
    found: dict[str, list[dict[str, float]]] = {"verify": [], "no-verify": []}
    copies = []
    for _ in range(repeats):
        copies.append(copy(checkpoint, run / "copy"))
        (run / "copy").unlink()
        for mode, results in found.items():
            out = run / "out"
            command = [sys.executable, __file__, "--once", str(run), str(out), mode]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(out)
    size = checkpoint.stat().st_size
    base = statistics.median(copies)
    bound = 2 * largest + 300e6
    print(f"{run.name}: checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    print(f"  copy and fsync        {base:6.2f} s")
    for mode, results in found.items():
        seconds = statistics.median(r["seconds"] for r in results)
        peak, start = (max(r[key] for r in results) for key in ("peak", "start"))
        print(
            f"  export, {mode:<12}  {seconds:6.2f} s  ratio {seconds / base:5.2f} (bound 1.5)  "
            f"peak {peak / 1e6:5.0f} MB, {(peak - start) / 1e6:5.0f} MB above the start "
            f"(bound {bound / 1e6:.0f} MB)"
        )


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        export_once(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    options = parser.parse_args()
    config = build_config(options.gigabytes)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for masked in (True, False):
            run = build_run(Path(folder), config, masked)
            measure(run, options.repeats, VOCABULARY * HIDDEN * 4)
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
