"""The masks see the right step and the right noise, and their logits stay within their bounds."""

import pytest
import torch
from composer.core import Callback, Event
from composer.utils import dist
from runs import metrics, series

from llmshearing import preflight
from llmshearing.callbacks.mask_clock import MaskClock
from llmshearing.models.shearing import unwrapped
from llmshearing.optimization import mask_schedule
from llmshearing.pruning.masks import LOG_ALPHA_BOUND
from llmshearing.train import build_trainer

pytestmark = pytest.mark.filterwarnings("default")  # allow Composer's own warnings


class MaskObserver(Callback):
    """Records the masks' state in each training forward and evaluation, and extreme logits."""

    def __init__(self):
        self.trained, self.evaluated, self.extremes = [], [], []

    def before_loss(self, state, logger):
        self.trained.append(unwrapped(state.model).masks.state)

    def eval_end(self, state, logger):
        self.evaluated.append(unwrapped(state.model).masks.state)

    def batch_end(self, state, logger):
        logits = torch.cat([x.flatten() for x in unwrapped(state.model).masks.log_alpha.values()])
        self.extremes.append((logits.min().item(), logits.max().item()))


def test_each_step_and_evaluation_has_the_state_of_its_own_step(recipe_file, tmp_path):
    given = (
        "run.duration=4ba",
        "run.eval_interval=2ba",
        "pruning.warmup=4ba",
        "data.eval_rows=2",
        "data.microbatch=8",
        "pruning.learning_rate=50",  # far beyond the bounds in one step
    )
    recipe, inputs = preflight.resolve(recipe_file, given)
    observer = MaskObserver()
    trainer = build_trainer(recipe, inputs, extra_callbacks=[observer])
    trainer.fit()
    trainer.close()
    schedule = mask_schedule(recipe)
    assert observer.trained == [schedule.at(step) for step in range(4)]
    domains = 3
    assert [moment.step for moment in observer.evaluated] == [2] * domains + [4] * domains
    targets = series(metrics(tmp_path / "run"), "pruning/target/hidden")
    assert targets == {1: 32.0, 2: 28.0, 3: 24.0, 4: 20.0}  # from 32 to 16 over four steps
    low, high = zip(*observer.extremes, strict=True)
    assert min(low) >= -LOG_ALPHA_BOUND
    assert max(high) <= LOG_ALPHA_BOUND
    assert -LOG_ALPHA_BOUND in low or LOG_ALPHA_BOUND in high


@pytest.mark.parametrize("noise", ["shared", "per_rank"])
def test_ranks_share_their_noise_unless_the_recipe_says_otherwise(recipe_file, monkeypatch, noise):
    given = ("pruning.distribution=paper", f"pruning.noise={noise}", "pruning.init_log_alpha=0")
    recipe, inputs = preflight.resolve(recipe_file, given)
    trainer = build_trainer(recipe, inputs)
    (clock,) = (a for a in trainer.state.algorithms if isinstance(a, MaskClock))
    masks = unwrapped(trainer.state.model).masks.train()
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        clock.apply(Event.BATCH_START, trainer.state, trainer.logger)
        drawn.append(torch.cat([gate.flatten() for gate in masks().gates.values()]))
    monkeypatch.undo()
    trainer.close()
    assert torch.equal(*drawn) == (noise == "shared")
