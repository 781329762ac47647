"""One process, two with DDP and two with FSDP2 are the same run (gloo, float32, clipping on)."""

import pytest
from runs import launch, metrics, series

NAMES = (
    "loss/train/ce",
    "loss/train/lagrangian",
    "optimizer/gradient_norm",
    "optimizer/gradient_norm_masks",
    "optimizer/gradient_norm_linear_multipliers",
    "optimizer/gradient_norm_quadratic_multipliers",
    "pruning/expected_parameters",
    "pruning/expected/hidden",
    "metrics/prose/loss",
)


@pytest.mark.world_size(2)
def test_losses_and_gradient_norms_agree(recipe_file, tmp_path):
    found = {}
    for ranks, mode in ((1, "ddp"), (2, "ddp"), (2, "fsdp2")):
        run = tmp_path / f"{mode}{ranks}"
        done = launch(
            ranks,
            recipe_file,
            f"parallelism={mode}",
            f"run.directory={run}",
            "run.duration=5ba",
            "run.eval_interval=5ba",
            # A bound that binds: an error in the gradients' scale would change every step.
            "optimizer.clip_norm=0.1",
            "pruning.clip_norm=0.01",
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[mode, ranks] = metrics(run)
    alone = found["ddp", 1]
    for name in NAMES:
        expected = series(alone, name)
        assert expected, name
        for lines in found.values():
            assert series(lines, name) == pytest.approx(expected, abs=1e-5, rel=1e-5), name
    assert all(norm > 0.1 for norm in series(alone, "optimizer/gradient_norm").values())
