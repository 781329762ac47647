"""Run directories as train.py writes them."""

import json
from functools import partial

import numpy as np
import pytest
from manifests import run_manifest
from safetensors.numpy import save_file

from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import SourceRecord
from llmshearing.reports.page import write_report

FIXED = {"head_dim": 32, "vocabulary": 512}
SOURCE = {"hidden": 192, "layers": 6, "heads": 6, "kv_groups": 6, "intermediate": 512, **FIXED}
TARGET = {"hidden": 96, "layers": 4, "heads": 3, "kv_groups": 3, "intermediate": 256, **FIXED}
CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
DOMAINS = ("python", "reference", "packages", "headers")
AXES = {"hidden": "hidden", "layer": "layers", "head": "heads", "intermediate": "intermediate"}


def metrics_of(step, total, *, prunes, references, random):
    loss = 4.0 + 3.0 * np.exp(-step / 80)
    metrics = {
        "loss/train/ce": loss + random.normal(0, 0.1),
        "throughput/tokens_per_second": 15_000 + random.normal(0, 300),
    }
    if prunes:
        ramp = min(1, step / (0.3 * total))
        for axis, size in AXES.items():
            target = SOURCE[size] + ramp * (TARGET[size] - SOURCE[size])
            metrics[f"pruning/target/{axis}"] = target
            metrics[f"pruning/expected/{axis}"] = target + (1 - ramp) * 0.1 * SOURCE[size]
            metrics[f"pruning/multiplier/{axis}/linear"] = ramp * step / 10
            metrics[f"pruning/multiplier/{axis}/quadratic"] = ramp * step / 20
    if step % 50 == 0:
        for number, domain in enumerate(DOMAINS):
            metrics[f"metrics/{domain}/loss"] = loss + 0.2 * number
            if references:
                metrics[f"mixture/reference/{domain}"] = 3.9 + 0.2 * number
            metrics[f"mixture/weight/{domain}"] = 0.25 + (number - 1.5) * step / (10 * total)
            metrics[f"mixture/share/{domain}"] = 0.25 + (number - 1.5) * step / (20 * total)
    return metrics


@pytest.fixture
def make_run(tmp_path):
    """Makes run directories for one test."""
    return partial(write_run, tmp_path)


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory):
    """A pruning run and the run that continues from it; tests must not change them."""
    root = tmp_path_factory.mktemp("two-runs")
    return [write_run(root, "a/prune"), write_run(root, "a/continue", prunes=False)]


@pytest.fixture(scope="session")
def page_of_two(two_runs):
    """Their report, which takes seconds to draw."""
    return write_report(two_runs)


def write_run(
    root, name="prune", *, prunes=True, steps=300, every=5, manifest=True, references=True
):
    directory = root / name
    directory.mkdir(parents=True)
    random = np.random.default_rng(5)
    lines = [
        {
            "batch": step,
            "tokens": step * 2048,
            "seconds": step * 0.2,
            "metrics": metrics_of(step, 300, prunes=prunes, references=references, random=random),
        }
        for step in range(0, steps + 1, every)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    (directory / "config.yaml").write_text(
        f"run:\n  directory: {name}\n  duration: 300ba\nmodel:\n  path: <here & there>\n"
        f"optimizer:\n  betas: [0.9, 0.95]\n"
    )
    if manifest:
        run_manifest(
            source=SourceRecord("models/source", Shape(**SOURCE), CONFIG),
            target=Shape(**TARGET) if prunes else None,
        ).write(directory / "manifest.json")
    if prunes:
        for step in (0, steps):
            write_masks(directory / "masks", step, random)
    return directory


def write_masks(folder, step, random):
    folder.mkdir(exist_ok=True)
    shapes = {"hidden": (192,), "layer": (6,), "head": (6, 6), "intermediate": (6, 512)}
    scores = {
        axis: random.beta(0.2, 0.2, size=shape).astype(np.float32) for axis, shape in shapes.items()
    }
    save_file(scores, folder / f"ba{step}.safetensors")
