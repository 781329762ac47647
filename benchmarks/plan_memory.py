"""The planned and the measured peak of memory, for real runs on a processor.

Each run is a process of its own: the real trainer on a random model, some steps. Its baseline, the
resident memory once everything is imported and data is open, is taken from the kernel's high-water
mark, which is then reset.

    python benchmarks/plan_memory.py [--only NAME ...] [--hidden 512] [--layers 8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LENGTH, VOCABULARY = 512, 32000
# name: (rows of a step, rows of a pass, recomputation, masks)
CONFIGURATIONS = {
    "plain": (4, 4, False, False),
    "accumulated": (4, 2, False, False),
    "recomputed": (4, 4, True, False),
    "masked": (4, 2, False, True),
    "masked, recomputed": (4, 4, True, True),
}
TARGET = {"hidden": 384, "layers": 8, "heads": 6, "intermediate": 1024}
# glibc keeps freed blocks below a threshold that grows with them; a fixed one gives them back.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def model_directory(folder: Path, hidden: int, layers: int) -> Path:
    """A LLaMA of random weights: its config, and a tokenizer of one word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(WordLevel({"word": 0}, unk_token="word")).save(str(folder / "tokenizer.json"))
    return folder


def data_tree(root: Path, model: Path) -> Path:
    """A few random rows of one domain."""
    import numpy as np
    from streaming import MDSWriter

    from llmshearing.data.schema import (
        FORMAT_VERSION,
        TOKENS,
        columns,
        fingerprint,
        tokenizer_fingerprint,
    )

    if (root / "manifest.json").is_file():
        return root
    draw = np.random.default_rng(0)
    splits: dict[str, dict] = {}
    for split, rows in (("prune", 16), ("eval", 2)):
        folder = root / split / "text"
        spec = columns(LENGTH, "uint16", chat=False)
        with MDSWriter(out=str(folder), columns=spec, hashes=["sha256"]) as writer:
            for _ in range(rows):
                writer.write({TOKENS: draw.integers(0, VOCABULARY, LENGTH).astype(np.uint16)})
        entries = json.loads((folder / "index.json").read_text())["shards"]
        facts = {"rows": rows, "tokens": rows * LENGTH, "documents": rows, "dropped_tokens": 0}
        splits[split] = {"text": {**facts, "fingerprint": fingerprint(entries), "chat": False}}
    manifest = {
        "format": FORMAT_VERSION,
        "sequence_length": LENGTH,
        "token_dtype": "uint16",
        "vocabulary": VOCABULARY,
        "tokenizer": {"kind": "huggingface", "fingerprint": tokenizer_fingerprint(model)},
        "splits": splits,
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def write_recipe(name: str, folder: Path, hidden: int, layers: int) -> Path:
    rows, microbatch, recompute, masks = CONFIGURATIONS[name]
    model = model_directory(folder / "model", hidden, layers)
    recipe = {
        "run": {
            "directory": str(folder / "run" / name.replace(", ", "-")),
            "duration": "2ba",
            "eval_interval": "2ba",
            "checkpoint_interval": "9ba",
            "log_interval": "1ba",
        },
        "model": {
            "path": str(model),
            "initialize": "random",
            "activation_checkpointing": recompute,
        },
        "data": {
            "root": str(data_tree(folder / "data", model)),
            "split": "prune",
            "global_batch": rows,
            "microbatch": microbatch,
            "eval_batch": 1,
            "workers": 0,
        },
        "optimizer": {"learning_rate": 1e-4},
        "parallelism": "ddp",
    }
    if masks:
        recipe["target"] = TARGET
    path = folder / f"{name.replace(', ', '-')}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def status(field: str) -> int:
    """Bytes of a line of the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}: this needs Linux")


def measure(recipe: Path) -> None:
    """Train in this process and print the peak above the baseline."""
    from llmshearing import preflight
    from llmshearing.train import build_trainer

    checked, inputs = preflight.resolve(recipe)
    baseline = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    trainer = build_trainer(checked, inputs)
    trainer.fit()
    trainer.close()
    print(json.dumps({"peak": status("VmHWM") - baseline, "baseline": baseline}))


def planned(recipe: Path):
    from llmshearing.planning.devices import device_of
    from llmshearing.planning.plan import Machine, make_plan

    return make_plan(recipe, [], Machine(device_of("cpu"), 1)).memory.peak


def compare(name: str, folder: Path, hidden: int, layers: int) -> float:
    """One configuration, measured in a process of its own; the planned part of the measured."""
    recipe = write_recipe(name, folder, hidden, layers)
    started = time.monotonic()
    command = [sys.executable, __file__, "--measure", str(recipe)]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    measured = json.loads(done.stdout.splitlines()[-1])["peak"]
    moment = planned(recipe)
    ratio = moment.total / measured
    seconds = time.monotonic() - started
    print(
        f"{name:<20}{moment.total / 2**20:>10,.0f}{measured / 2**20:>10,.0f}{ratio:>8.3f}"
        f"{seconds:>8.0f}  {moment.name}",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS))
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    print(f"{'':<20}{'planned':>10}{'measured':>10}{'ratio':>8}{'s':>8}  highest at (MiB)")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or CONFIGURATIONS:
            compare(name, Path(folder), options.hidden, options.layers)


if __name__ == "__main__":
    main()
