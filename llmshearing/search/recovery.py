"""The best candidates, trained for a while and compared again: successive halving.

Each training is a run of `llmshearing.train` from the source with `pruning.method: oneshot`, on all
ranks together.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from composer.utils import dist

from llmshearing import parallelism, preflight
from llmshearing.architecture.target import SIZES
from llmshearing.checkpoints.layout import FOLDER
from llmshearing.checkpoints.manifest import RUN_FILE, RunManifest
from llmshearing.ledger import Ledger
from llmshearing.oneshot_start import CUT
from llmshearing.pruning.scores import save_scores
from llmshearing.search.search import Candidate
from llmshearing.train import train


def halvings(finalists: int, steps: int) -> list[tuple[int, int]]:
    """Rounds of successive halving: how many shapes are trained, and for how many steps.

    The last round trains two shapes for all steps; each round before it trains twice as many for
    half as long.
    """
    rounds = [(min(2, finalists), steps)]
    while rounds[0][0] * 2 <= finalists:
        shapes, longer = rounds[0]
        rounds.insert(0, (shapes * 2, max(1, longer // 2)))
    return rounds


def recover(
    candidates: Sequence[Candidate], recipe: Path, rounds: Sequence[tuple[int, int]], ledger: Ledger
) -> list[dict[str, float]]:
    """Train the candidates, the best first, round after round of `halvings`.

    `recipe` is a run of the source without a target.

    Returns:
        For each round the held-out losses after training, by name, the lowest first.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    names, losses = list(by_name), []
    for shapes, steps in rounds:
        keys = [f"{steps}ba/{name}" for name in names[:shapes]]
        found = ledger.results(
            f"recovery, {steps} steps",
            keys,
            lambda key: _trained_loss(by_name[key.partition("/")[2]], recipe, key),
            together=True,
        )
        named = {key.partition("/")[2]: loss for key, loss in found.items()}
        losses.append(dict(sorted(named.items(), key=lambda pair: (pair[1], pair[0]))))
        names = list(losses[-1])
    return losses


def _trained_loss(candidate: Candidate, recipe: Path, key: str) -> float:
    """The mean held-out loss over the domains after a training from the cut candidate."""
    steps, _, name = key.partition("/")
    directory = recipe.parent / "recovery" / f"{name}-{steps}"
    scores = recipe.parent / "recovery" / f"{name}.safetensors"
    if dist.get_global_rank() == 0:
        save_scores(scores, candidate.scores, {})
    overrides = [f"target.{size}={getattr(candidate.shape, size)}" for size in SIZES]
    overrides += ["pruning.method=oneshot", f"pruning.importance={scores}"]
    overrides += [
        f"run.{interval}={steps}" for interval in ("eval_interval", "checkpoint_interval")
    ]
    overrides += [f"run.directory={directory}", f"run.duration={steps}"]
    checked, inputs = preflight.resolve(recipe, overrides, dist.get_world_size())
    if not dist.is_initialized():
        parallelism.join_ranks(checked)
    with parallelism.failures_explained(), parallelism.own_directory(directory):
        if status := train(checked, inputs):
            raise SystemExit(status)  # a signal; the next start resumes this run
        losses = RunManifest.read(directory / RUN_FILE).losses
        dist.barrier()
        if dist.get_global_rank() == 0:
            for large in (CUT, FOLDER):
                shutil.rmtree(directory / large, ignore_errors=True)
    return sum(losses.values()) / len(losses)
