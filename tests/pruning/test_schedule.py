"""The phases of a pruning run, step by step."""

from pathlib import Path

import pytest

from llmshearing.config import load_recipe
from llmshearing.optimization import mask_schedule
from llmshearing.pruning.schedule import MaskSchedule
from llmshearing.quantities import steps

SCHEDULE = MaskSchedule(warmup=20, sharpen_until=80, decide=80, freeze=90, sharpness=16.0)


def test_the_target_moves_linearly_over_the_warmup():
    assert [SCHEDULE.at(step).ramp for step in (0, 5, 20, 99)] == [0.0, 0.25, 1.0, 1.0]


def test_sharpness_grows_by_the_same_factor_each_step_after_the_warmup():
    found = [SCHEDULE.at(step).sharpness for step in (0, 20, 35, 50, 80, 99)]
    assert found == pytest.approx([1.0, 1.0, 2.0, 4.0, 16.0, 16.0])


def test_masks_are_frozen_from_their_step_on():
    assert not SCHEDULE.at(89).frozen
    assert SCHEDULE.at(90).frozen


def test_masks_decide_between_sharpening_and_freezing():
    assert [SCHEDULE.at(step).deciding for step in (79, 80, 89, 90)] == [False, True, True, False]


def test_the_schedule_of_the_paper_neither_sharpens_nor_freezes():
    schedule = MaskSchedule(warmup=0, sharpen_until=0, decide=101, freeze=101, sharpness=1.0)
    states = [schedule.at(step) for step in range(101)]
    found = {(m.ramp, m.sharpness, m.deciding, m.frozen) for m in states}
    assert found == {(1.0, 1.0, False, False)}


RECIPE = Path(__file__).parents[2] / "yamls/prune/tiny-llama-to-half.yaml"


@pytest.mark.parametrize("freeze", ["0.25dur", "0.5dur", "0.9dur"])
def test_masks_are_sharp_and_decide_before_they_freeze(freeze):
    given = ("model.path=M", "data.root=D", f"pruning.freeze={freeze}")
    schedule = mask_schedule(load_recipe(RECIPE, given))
    last = schedule.at(schedule.freeze - 1)
    assert last.deciding
    assert not last.frozen
    assert last.sharpness == pytest.approx(schedule.sharpness)
    assert schedule.at(schedule.freeze).frozen
    assert schedule.freeze - schedule.decide >= (schedule.freeze - schedule.warmup) // 8


def test_the_preset_of_the_paper_never_decides_or_freezes():
    recipe = load_recipe(RECIPE, ("model.path=M", "data.root=D", "pruning.preset=paper"))
    schedule, total = mask_schedule(recipe), steps(recipe.run.duration)
    last = schedule.at(total)  # the evaluation at the end
    assert not last.deciding
    assert not last.frozen
    assert last.sharpness == 1.0


def test_a_fixed_shape_comes_after_the_warmup_and_before_the_decision():
    given = ("model.path=M", "data.root=D", "target={parameters: 2M}", "run.duration=100ba")
    phases = ("pruning.warmup=50ba", "pruning.fix_shape=40ba", "pruning.freeze=60ba")
    schedule = mask_schedule(load_recipe(RECIPE, (*given, *phases)))
    assert schedule.fix_shape == schedule.warmup == 50
    assert not schedule.at(49).shaped
    assert schedule.at(50).shaped
    assert (schedule.decide, schedule.freeze) == (59, 60)
    phases = ("pruning.warmup=20ba", "pruning.fix_shape=40ba", "pruning.freeze=80ba")
    schedule = mask_schedule(load_recipe(RECIPE, (*given, *phases)))
    assert (schedule.fix_shape, schedule.decide, schedule.freeze) == (40, 75, 80)
