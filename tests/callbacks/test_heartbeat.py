"""Each part of a run is reported to the watchdog with its limit."""

import pytest
from runs import metrics

from llmshearing import preflight
from llmshearing.train import build_trainer
from llmshearing.watchdog import Watchdog

pytestmark = pytest.mark.filterwarnings("default")  # allow Composer's own warnings


def test_the_start_has_the_start_timeout_and_later_parts_the_step_timeout(
    recipe_file, tmp_path, monkeypatch
):
    entered = []
    enter = Watchdog.enter

    def noted(self, what, limit):
        entered.append((what, limit))
        enter(self, what, limit)

    monkeypatch.setattr(Watchdog, "enter", noted)
    given = (
        "run.duration=2ba",
        "run.eval_interval=2ba",
        "run.checkpoint_interval=2ba",
        "run.start_timeout=500s",
        "run.step_timeout=70s",
        "data.eval_rows=1",
        "pruning.freeze=1dur",
    )
    recipe, inputs = preflight.resolve(recipe_file, given)
    trainer = build_trainer(recipe, inputs, watchdog=Watchdog(tmp_path / "run"))
    trainer.fit()
    trainer.close()
    limits = dict(entered)
    assert len(metrics(tmp_path / "run")) == 2
    starting = ("the sharding", "the first batch", "step 0")
    later = (
        "the end of step 0",
        "the loading of step 1",
        "step 1",
        "the evaluation of prose, batch 0",
        "the end of the evaluation at step 2",
        "the checkpoint at step 2",
        "the end of the run",
    )
    assert {what: limits[what] for what in starting} == dict.fromkeys(starting, 500.0)
    assert {what: limits[what] for what in later} == dict.fromkeys(later, 70.0)
    order = [what for what, _ in entered]
    assert [order.index(what) for what in starting] == sorted(map(order.index, starting))
