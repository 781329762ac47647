"""Loader against the stock one: same tree, same workers, same machine, one run.

    python benchmarks/loader.py [--megabytes 200] [--seconds 8]

The stock side is what a user of Streaming would write: `StreamingDataset` over one stream a domain
with fixed proportions, `StreamingDataLoader`, and a collate function that gives the same batches.
Also measured: how an update, the first indices after a resume, memory and the checkpoint's state
grow with the data, on an index without files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from llmshearing.data.dataloaders import build_train_loader
from llmshearing.data.dataset import TrainRows
from llmshearing.data.domains import DomainRows
from llmshearing.data.schema import TOKENS, columns
from llmshearing.mixture import policies
from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.policies import Limits
from llmshearing.mixture.sampler import DomainSource, Sampler

WEIGHTS = {
    "cc": 0.67,
    "github": 0.045,
    "book": 0.045,
    "stackexchange": 0.02,
    "wiki": 0.045,
    "arxiv": 0.025,
    "c4-rp": 0.15,
}
LENGTH = 1024
VOCABULARY = 32_000
BATCH = 32
ROUNDS = 5


def main() -> None:
    """Print one table of rates and one of growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the generated tree")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("--growth-of", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth_of:
        print(json.dumps(growth(int(options.growth_of))))
        return
    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_tree(Path(folder), options.megabytes)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.mds"))
        print(f"{rows:,} rows of {LENGTH} tokens, {size / 1e6:.0f} MB, batches of {BATCH}")
        print("workers  stock batches/s  ours batches/s  ratio (median of rounds; range)")
        for workers in (0, 1, 2):
            compare(Path(folder), workers, options.seconds)
    print("\nrows           update ms  resume ms  state KB  memory MB")
    for count in (10**6, 10**8, 10**10):
        command = [sys.executable, __file__, "--growth-of", str(count)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(
            f"{count:<14,} {found['update']:>9.3f}  {found['resume']:>9.2f}  "
            f"{found['state']:>8.1f}  {found['memory']:>9.1f}"
        )


def write_tree(root: Path, megabytes: int) -> int:
    """Domains in equal shares, 1,024 tokens a row."""
    rng = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // (2 * LENGTH) // len(WEIGHTS) + 1
    for name in WEIGHTS:
        spec = columns(LENGTH, "uint16", chat=False)
        with MDSWriter(
            out=str(root / name), columns=spec, size_limit=1 << 23, hashes=["sha256"]
        ) as writer:
            for _ in range(rows):
                writer.write({TOKENS: rng.integers(0, VOCABULARY, LENGTH, dtype=np.uint16)})
    return rows * len(WEIGHTS)


def compare(root: Path, workers: int, seconds: float) -> None:
    """Alternate the two sides, so that what else the machine does meets both."""
    rates: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(ROUNDS):
        for name, build in (("stock", stock), ("ours", ours)):
            rates[name].append(rate(build(root, workers), seconds / ROUNDS))
    ratios = [o / s for o, s in zip(rates["ours"], rates["stock"], strict=True)]
    print(
        f"{workers:<7}  {statistics.median(rates['stock']):>15.1f}  "
        f"{statistics.median(rates['ours']):>14.1f}  {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def rate(batches: Iterable[Any], seconds: float) -> float:
    """Batches per second after the first ones, which wait for the workers to start."""
    iterator: Iterator[Any] = iter(batches)
    for batch in islice(iterator, 8):
        assert batch["input_ids"].shape == (BATCH, LENGTH)
        assert batch["input_ids"].dtype == torch.int64
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - begun)


def ours(root: Path, workers: int) -> Iterable[Any]:
    """The project's loader."""
    domains = [DomainRows(name, root / name) for name in WEIGHTS]
    sources = [DomainSource(d.name, len(d), d.block) for d in domains]
    sampler = Sampler(sources, MixturePlan.start(list(WEIGHTS.values())), 17)
    rows = TrainRows(domains, LENGTH, VOCABULARY, sampler)
    spec = build_train_loader(rows, global_batch=BATCH, workers=workers, prefetch=4)
    return spec.dataloader


def stock(root: Path, workers: int) -> Iterable[Any]:
    """Streaming's own loader with fixed proportions, shuffled, endless over epochs."""
    streams = [Stream(local=str(root / n), proportion=w) for n, w in WEIGHTS.items()]
    dataset = StreamingDataset(streams=streams, batch_size=BATCH, shuffle=True, shuffle_seed=17)
    loader = StreamingDataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=workers,
        prefetch_factor=4 // workers if workers else None,
        collate_fn=collate,
        drop_last=True,
    )

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    return endless()


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Token ids and labels; the stock loader does not know a row's domain."""
    ids = torch.from_numpy(np.stack([s[TOKENS] for s in samples]).astype(np.int64))
    return {"input_ids": ids, "labels": ids.clone()}


def growth(rows: int) -> dict[str, float]:
    """Cost of what a run does besides reading, for so many rows in all."""
    before = peak_megabytes()
    names, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()))
    sources = [DomainSource(n, max(1, int(rows * w)), 8192) for n, w in WEIGHTS.items()]

    def new() -> Sampler:
        return Sampler(sources, MixturePlan.start(weights), 17)

    sampler, batch, updates = new(), 256, 1000
    rng, times = np.random.default_rng(0), []
    references = rng.uniform(1, 2, len(names))
    for _ in range(updates):
        losses = references + rng.normal(0.02, 0.05, len(names))
        begun = time.perf_counter()
        weights = policies.update("dro", weights, losses, references, Limits.none(weights))
        sampler.update(sampler.cursor.sample, weights)
        times.append(time.perf_counter() - begun)
        sampler.take(batch)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    again, begun = new(), time.perf_counter()
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    found = again.take(batch)
    assert found is not None
    again.rows(found)
    return {
        "update": 1e3 * statistics.median(times),
        "resume": 1e3 * (time.perf_counter() - begun),
        "state": len(file.getvalue()) / 1024,
        "memory": peak_megabytes() - before,
    }


def peak_megabytes() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
