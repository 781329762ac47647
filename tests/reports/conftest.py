"""Run directories as train.py leaves them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

SOURCE = {"hidden": 192, "layers": 6, "heads": 6, "kv_groups": 6, "intermediate": 512}
TARGET = {"hidden": 96, "layers": 4, "heads": 3, "kv_groups": 3, "intermediate": 256}
DOMAINS = ("python", "reference", "packages", "headers")
AXES = {"hidden": "hidden", "layer": "layers", "head": "heads", "intermediate": "intermediate"}


def metrics_of(step, total, *, prunes, random):
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
            metrics[f"loading/reference/{domain}"] = 3.9 + 0.2 * number
            metrics[f"loading/weight/{domain}"] = 0.25 + (number - 1.5) * step / (10 * total)
            metrics[f"loading/share/{domain}"] = 0.25 + (number - 1.5) * step / (20 * total)
    return metrics


@pytest.fixture
def make_run(tmp_path):
    def make(name="prune", *, prunes=True, steps=300, manifest=True):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        random = np.random.default_rng(5)
        lines = [
            {
                "batch": step,
                "tokens": step * 2048,
                "seconds": step * 0.2,
                "metrics": metrics_of(step, 300, prunes=prunes, random=random),
            }
            for step in range(0, steps + 1, 5)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text)
        (directory / "config.yaml").write_text(
            f"run:\n  directory: {name}\n  duration: 300ba\nmodel:\n  path: <here & there>\n"
        )
        if manifest:
            facts = {"source": {"shape": SOURCE}, "target": TARGET if prunes else None}
            (directory / "manifest.json").write_text(json.dumps(facts))
        if prunes:
            write_masks(directory / "masks", steps, random)
        return directory

    return make


def write_masks(folder, step, random):
    folder.mkdir()
    shapes = {"hidden": (192,), "layer": (6,), "head": (6, 6), "intermediate": (6, 512)}
    scores = {
        axis: random.beta(0.2, 0.2, size=shape).astype(np.float32) for axis, shape in shapes.items()
    }
    save_file(scores, folder / f"ba{step}.safetensors")
