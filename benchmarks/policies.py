"""Continued pre-training of one pruned model under each policy of dynamic batch loading.

Runs the small bench's second stage once per policy and seed, on equal tokens, and prints the mean
and the worst excess loss over the reference:

    python benchmarks/policies.py PRUNED DATA REFERENCES.yaml OUT [--seeds 17 18 19] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from llmshearing.loading.references import References

RECIPE = "yamls/continue/tiny-llama-half.yaml"
POLICIES = ("constant", "paper", "released", "dro")


def train(options, policy: str, seed: int) -> dict[str, float]:
    """One run; the held-out loss per domain at its end."""
    run = options.out / f"{policy}-{seed}"
    if not (run / "manifest.json").is_file():
        settings = {
            "model.path": options.pruned,
            "data.root": options.data,
            "run.directory": run,
            "run.seed": seed,
            "run.eval_interval": "50ba",
            "loading.policy": policy,
            "loading.references": options.references,
            "loading.update_interval": "50ba",
        }
        overrides = [f"{key}={value}" for key, value in settings.items()] + options.overrides
        command = [sys.executable, "-m", "llmshearing.train", RECIPE, *overrides]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return json.loads((run / "manifest.json").read_text())["losses"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    options, options.overrides = parser.parse_known_args()
    references = References.read(options.references).losses
    print("| policy | seeds | mean loss | mean excess | worst excess | worst domain |")
    print("|---|---|---|---|---|---|")
    for policy in POLICIES:
        runs = [train(options, policy, seed) for seed in options.seeds]
        losses = {name: statistics.mean(run[name] for run in runs) for name in references}
        excess = {name: losses[name] - references[name] for name in references}
        worst = max(excess, key=excess.__getitem__)
        spread = [statistics.mean(run.values()) for run in runs]
        print(
            f"| {policy} | {len(runs)} | {statistics.mean(spread):.4f} "
            f"({min(spread):.4f} to {max(spread):.4f}) | {statistics.mean(excess.values()):.4f} "
            f"| {excess[worst]:.4f} | {worst} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
