"""Time and memory of an export against copying its checkpoint and flushing the copy.

Builds a checkpoint of a LLaMA shape, once with masks that prune it and once without. Copy and
export take turns, each in a new process that has loaded the libraries, so that both find the disk's
cache and the free memory in the same state. The checkpoint is read once beforehand: all find it in
the cache. It holds next to no optimizer state. With it the copy and the checksums, which read every
byte of a checkpoint, take three times as long; the rest of an export does not change. Memory is the
process's own (RssAnon), without pages of mapped files, which the system can take back.

    python benchmarks/export.py [--gigabytes 2] [--repeats 5] [--folder DIR]
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
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.checkpoints.manifest import DataRecord, RunManifest, SourceRecord
from llmshearing.checksums import record_files
from llmshearing.data.schema import tokenizer_fingerprint
from llmshearing.pruning.schedule import MaskState

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
    manifest = RunManifest(
        recipe={"pruning": {"distribution": "paper"}, "data": {"global_batch": 1}},
        source=SourceRecord(str(tokenizer), source, config),
        data=DataRecord(
            root="",
            sequence_length=1,
            tokenizer={"fingerprint": tokenizer_fingerprint(tokenizer)},
            fingerprints={},
        ),
        tokens=1,
        target=target,
        batch=1,
        masks=MaskState(frozen=False) if masked else None,
        files=record_files({checkpoint.name: checkpoint}),
    )
    manifest.write(checkpoint.with_suffix(".json"))
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


def copy(source: Path, out: Path) -> None:
    """Copy a file and flush the copy."""
    shutil.copyfile(source, out)
    with out.open("rb+") as file:
        os.fsync(file.fileno())


def once(run: str, out: str, mode: str) -> None:
    """In a process of its own: seconds and memory of one copy or export, as JSON."""
    from llmshearing.export.export import export

    before, peak, ended = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], own_memory())

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    if mode == "copy":
        copy(Path(run, "checkpoints", "ba1.pt"), Path(out))
    else:
        export(run, out, verify=mode == "verified")
    seconds = time.perf_counter() - started
    ended.set()
    print(json.dumps({"seconds": seconds, "start": before, "peak": max(peak[0], own_memory())}))


def in_a_process(run: Path, mode: str) -> dict[str, float]:
    """What `once` printed, with the seconds of the whole process."""
    out = run / "out"
    started = time.perf_counter()
    command = [sys.executable, __file__, "--once", str(run), str(out), mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - started
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return json.loads(done.stdout.splitlines()[-1]) | {"process": whole}


def own_memory() -> int:
    """Bytes of this process's own memory, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def measure(run: Path, repeats: int, largest: int) -> None:
    checkpoint = run / "checkpoints" / "ba1.pt"
    with checkpoint.open("rb") as file:
        while file.read(1 << 24):
            pass
    found: dict[str, list[dict[str, float]]] = {"copy": [], "unverified": [], "verified": []}
    for _ in range(repeats):
        for mode, results in found.items():
            results.append(in_a_process(run, mode))
    size = checkpoint.stat().st_size
    copies = [result["seconds"] for result in found.pop("copy")]
    base = statistics.median(copies)
    bound = min(size, 5e9) + 2 * largest + 300e6  # a weight file, a tensor and what it is cut to
    print(f"{run.name}: checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    print(f"  copy and fsync      {spread(copies)}")
    for mode, results in found.items():
        seconds = [result["seconds"] for result in results]
        whole = statistics.median(result["process"] for result in results)
        peak, start = (max(r[key] for r in results) for key in ("peak", "start"))
        print(
            f"  export, {mode:<10}  {spread(seconds)}  "
            f"ratio {statistics.median(seconds) / base:.2f} (bound 3)  "
            f"whole process {whole:.2f} s  "
            f"{(peak - start) / 1e6:.0f} MB above the start (bound {bound / 1e6:.0f} MB)"
        )


def spread(seconds: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):5.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        once(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
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
