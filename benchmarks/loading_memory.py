"""Peak host memory while a model is loaded, by one process and by several that shard it (FSDP2).

Counted is the proportional set size of all ranks together (a page that several processes share
counts once), above what they used before; the unit is the size of the model in float32, in which
weights are trained. Sampled from outside while the ranks load; the system's own peak per process
stands next to it.

    python benchmarks/loading_memory.py [--megabytes 1000] [--ranks 1 2] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2752, 32000


def write_model(folder: Path, megabytes: float, dtype: str) -> int:
    """A random LLaMA of about that size in float32; returns its exact size in bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    layer = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
    layers = max(1, round((megabytes * 1e6 / 4 - 2 * VOCABULARY * HIDDEN) / layer))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=16,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def load(folder: str) -> None:
    """What one rank does: load as training does, between two lines on standard output."""
    from composer.core.precision import Precision
    from composer.distributed.prepare_distributed import parallelize_composer_model
    from composer.utils import dist, get_device
    from composer.utils.parallelism import FSDP2Config

    from llmshearing import substrate
    from llmshearing.huggingface.source import empty_model, fill, load_model, read_source
    from llmshearing.huggingface.weight_files import WeightFiles
    from llmshearing.models.shearing import ShearingModel

    dist.initialize_dist(get_device("cpu"))
    source = read_source(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    if dist.get_world_size() == 1:
        model = ShearingModel(load_model(source), None, domains=1)
    else:
        weights = WeightFiles(source.path)
        decoder = empty_model(source, weights)
        substrate.fill_when_sharded(decoder, lambda: fill(decoder, weights, substrate.local_rows))
        model = ShearingModel(decoder, None, domains=1)
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        parallelize_composer_model(model, None, FSDP2Config(), Precision.FP32)
    assert not any(parameter.is_meta for parameter in model.parameters())
    print("loaded", flush=True)
    sys.stdin.readline()


def proportional_size(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def peak_size(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def measure(folder: Path, ranks: int) -> tuple[int, int, float]:
    """Peak of all ranks together above the start, sampled and by the system's count; seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "NODE_RANK": 0,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {name: str(value) for name, value in place.items()}
        command = [sys.executable, __file__, "--load", str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        for process in processes:
            wait_for(process, "ready")
        before = sum(map(proportional_size, processes))
        peaks_before = sum(map(peak_size, processes))
        started, highest = time.perf_counter(), 0
        tell(processes)
        for process in processes:
            os.set_blocking(process.stdout.fileno(), False)
        waiting = set(processes)
        while waiting:
            highest = max(highest, sum(map(proportional_size, processes)))
            waiting -= {p for p in waiting if "loaded" in (p.stdout.readline() or "")}
            if any(process.poll() for process in processes):
                raise SystemExit("a rank has failed")
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        counted = sum(map(peak_size, processes)) - peaks_before
        tell(processes)
        for process in processes:
            process.wait()
        return highest - before, counted, seconds
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    while line := process.stdout.readline():
        if word in line:
            return
    raise SystemExit(f"a rank has ended before it was {word}")


def tell(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def main() -> None:
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1000.0, help="of the model in float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32", help="of the weight files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_model(Path(folder), options.megabytes, options.dtype)
        print(f"model of {size / 1e6:.0f} MB in float32, files in {options.dtype}")
        for ranks in options.ranks:
            sampled, counted, seconds = measure(Path(folder), ranks)
            found = {"ranks": ranks, "peak": sampled, "ratio": round(sampled / size, 3)}
            print(json.dumps(found | {"system_peak": counted, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
