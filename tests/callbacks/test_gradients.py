"""Gradient clipping: every optimizer group by its own norm and bound."""

from pathlib import Path

import pytest
from composer.core import Callback
from runs import metrics

from llmshearing import preflight
from llmshearing.callbacks.gradients import by_name, total_norm
from llmshearing.train import build_trainer

pytestmark = pytest.mark.filterwarnings("default")  # allow Composer's own warnings


class NormObserver(Callback):
    """Records the gradient norm of each group right before the optimizer step."""

    def __init__(self):
        self.norms = []

    def after_train_batch(self, state, logger):
        self.norms.append(
            {
                group["name"]: total_norm([p.grad for p in group["params"]]).item()
                for group in state.optimizers[0].param_groups
            }
        )


def one_step(recipe_file, *overrides):
    """The norms of the first step: as the optimizer sees them, and as logged."""
    short = ("run.duration=1ba", "run.eval_interval=8ba", "data.eval_rows=1")
    recipe, inputs = preflight.resolve(recipe_file, (*short, *overrides))
    observer = NormObserver()
    trainer = build_trainer(recipe, inputs, extra_callbacks=[observer])
    trainer.fit()
    trainer.close()
    (seen,) = observer.norms
    return seen, metrics(Path(recipe.run.directory))[0]["metrics"]


def test_each_group_is_clipped_by_its_own_norm_to_its_own_bound(recipe_file, tmp_path):
    free, logged = one_step(recipe_file, "optimizer.clip_norm=0", "pruning.clip_norm=0")
    assert logged["optimizer/gradient_norm"] == pytest.approx(free[""])
    assert logged["optimizer/gradient_norm_masks"] == pytest.approx(free["masks"])
    assert free[""] > 0.2
    assert free["masks"] > 0.002
    bounds = ("optimizer.clip_norm=0.1", "pruning.clip_norm=0.001")
    seen, unclipped = one_step(recipe_file, *bounds, f"run.directory={tmp_path}/clipped")
    assert seen[""] == pytest.approx(0.1, rel=1e-4)
    assert seen["masks"] == pytest.approx(0.001, rel=1e-2)
    for name in ("optimizer/gradient_norm", "optimizer/gradient_norm_masks"):
        assert unclipped[name] == logged[name]


def test_norms_of_groups_of_one_name_are_logged_together():
    found = by_name(["", "masks", "linear_multipliers", "linear_multipliers"], [1.0, 2.0, 3.0, 4.0])
    assert found == {
        "optimizer/gradient_norm": 1.0,
        "optimizer/gradient_norm_masks": 2.0,
        "optimizer/gradient_norm_linear_multipliers": 5.0,
    }
