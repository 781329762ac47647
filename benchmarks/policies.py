"""Continued pre-training of one pruned model under each policy of dynamic batch loading.

Runs the small bench's second stage once per policy and seed, on equal tokens, and prints the mean
loss of the exported models and the mean and the worst excess over the reference, all held-out rows:

    python benchmarks/policies.py PRUNED DATA REFERENCES.yaml OUT [key=value ...] [--seeds 17 18 19]

The signal of a policy is the loss on 64 rows a domain, every 50 steps. What is finished in `OUT` is
kept.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import small_bench

from llmshearing.mixture.references import References

POLICIES = ("constant", "paper", "released", "dro")


def losses(options: argparse.Namespace, policy: str, seed: int) -> dict[str, float]:
    """Held-out loss per domain at the end of one run."""
    folder = options.out / f"{policy}-{seed}"
    run, model = folder / "run", folder / "sheared"
    common = small_bench.settings(options.data, run, seed, small_bench.STEPS, eval_rows=64)
    chosen = {
        "model.path": options.pruned,
        "run.eval_interval": "50ba",
        "mixture.policy": policy,
        "mixture.references": options.references,
        "mixture.update_interval": "50ba",
    }
    if not (model / "llmshearing.json").is_file():
        small_bench.train(small_bench.CONTINUE, common | chosen, options.overrides)
        small_bench.export(run, model)
    return small_bench.evaluate(model, options.data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    options, options.overrides = parser.parse_known_args()
    references = References.read(options.references).losses
    print("| policy | seeds | mean loss | mean excess | worst excess | worst domain |")
    print("|---|---|---|---|---|---|")
    for policy in options.policies:
        runs = [losses(options, policy, seed) for seed in options.seeds]
        excess = {
            name: statistics.mean(run[name] for run in runs) - reference
            for name, reference in references.items()
        }
        worst = max(excess, key=excess.__getitem__)
        means = small_bench.spread([statistics.mean(run.values()) for run in runs])
        print(
            f"| {policy} | {len(runs)} | {means} | {statistics.mean(excess.values()):.4f} "
            f"| {excess[worst]:.4f} | {worst} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
