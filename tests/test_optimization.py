"""Learning rates and directions of weights, masks and multipliers."""

import json
from dataclasses import replace

import pytest
import torch
from models_zoo import build, variants

from llmshearing.config import load_recipe
from llmshearing.errors import UserError
from llmshearing.models.shearing import ShearingModel
from llmshearing.optimization import (
    build_optimizer,
    build_schedule,
    hold_cosine,
    mask_groups,
    warmup_cosine,
)
from llmshearing.pruning.masks import Masks
from llmshearing.pruning.settings import PruningSettings

VARIANT = variants()[0]


@pytest.fixture
def masks():
    """Masks of a tiny model whose hidden size and MLP shrink."""
    _, table = build(VARIANT)
    target = replace(table.source, hidden=12, intermediate=8)
    return lambda **settings: Masks(table, target, PruningSettings(**settings), seed=1)


def test_multipliers_ascend_and_masks_descend(masks):
    built = masks()
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    optimizer = torch.optim.AdamW(mask_groups(built, built.settings))
    for parameter in built.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in built.named_parameters():
        if name.startswith("multipliers."):
            assert (parameter > before[name]).all(), name
        else:
            assert (parameter < before[name]).all(), name


def test_linear_and_quadratic_multipliers_and_masks_each_have_their_own_rate(masks):
    rates = {"learning_rate": 0.5, "linear_learning_rate": 0.25, "quadratic_learning_rate": 0.125}
    built = masks(**rates)
    rate_of = {
        id(parameter): group["lr"]
        for group in mask_groups(built, built.settings)
        for parameter in group["params"]
    }
    for name, parameter in built.named_parameters():
        expected = 0.125 if ".quadratic." in name else 0.25 if ".linear." in name else 0.5
        assert rate_of[id(parameter)] == expected, name


def test_rates_of_gaps_in_counts_are_divided_by_the_size_and_its_square(masks):
    built = masks(constraint="paper", linear_learning_rate=0.25, quadratic_learning_rate=0.125)
    rate_of = {
        id(parameter): group["lr"]
        for group in mask_groups(built, built.settings)
        for parameter in group["params"]
    }
    multipliers, layers = built.multipliers, built.layers
    hidden, intermediate = (built.table.source.hidden, built.table.source.intermediate)
    assert rate_of[id(multipliers.linear["hidden"])] == 0.25 / hidden
    assert rate_of[id(multipliers.quadratic["hidden"])] == 0.125 / hidden**2
    # Every layer has a penalty of its own and they are summed, so the rate is that of the mean.
    assert rate_of[id(multipliers.linear["intermediate"])] == 0.25 / (layers * intermediate)
    assert rate_of[id(multipliers.quadratic["intermediate"])] == 0.125 / (layers * intermediate**2)


def test_weights_warm_up_linearly_then_follow_a_cosine():
    factor = warmup_cosine(warmup=4, total=12, final=0.1)
    assert [factor(step) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factor(5) < 1.0
    assert factor(8) == pytest.approx(0.55)  # half way down from 1 to 0.1
    assert factor(12) == pytest.approx(0.1)
    assert warmup_cosine(warmup=0, total=12, final=0.1)(0) == 1.0


def test_mask_rates_hold_then_follow_a_cosine_and_are_zero_from_the_stop_on():
    factor = hold_cosine(hold=4, total=12, final=0.1, stop=10)
    assert [factor(step) for step in range(5)] == [1.0] * 5
    assert factor(5) < 1.0
    assert factor(8) == pytest.approx(0.55)
    assert factor(9) > 0.1
    assert factor(10) == factor(11) == 0.0


def test_schedule_of_a_pruning_run(tmp_path):
    """Weights go on learning when the masks are frozen; masks and multipliers stop there."""
    settings = {
        "run": {"directory": "unused", "duration": "20ba"},
        "model": {"path": "unused"},
        "target": {"hidden": 12, "intermediate": 8},
        "data": {"root": "unused", "split": "prune", "global_batch": 2, "microbatch": 2},
        "optimizer": {"learning_rate": 0.01, "warmup": "2ba"},
        "pruning": {"warmup": "4ba", "freeze": "15ba", "learning_rate": 0.5},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    recipe = load_recipe(path)
    decoder, table = build(VARIANT)
    target = replace(table.source, hidden=12, intermediate=8)
    model = ShearingModel(decoder, Masks(table, target, recipe.pruning, seed=1), domains=1)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe)
    found = []
    for _ in range(20):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    weights, masks, *multipliers = (list(rates) for rates in zip(*found, strict=True))
    assert weights[:4] == pytest.approx(
        [0.01 / 3, 0.02 / 3, 0.01, 0.01 * warmup_cosine(2, 20, 0.1)(3)]
    )
    assert min(weights) > 0.0
    assert masks[:5] == [0.5] * 5
    assert masks[5] < 0.5
    for rates in (masks, *multipliers):
        assert min(rates[:15]) > 0.0
        assert rates[15:] == [0.0] * 5


def rates(recipe, steps):
    """The learning rate of the weights at each step of a run."""
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=1.0)
    schedule, found = build_schedule(optimizer, recipe), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_runs_that_share_a_schedule_have_the_rates_of_one_run(recipe_file):
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe_file.write_text(json.dumps(recipe))
    whole = rates(load_recipe(recipe_file, ["run.duration=20ba"]), 20)
    first = ["run.duration=8ba", "optimizer.schedule_length=20ba"]
    second = ["run.duration=12ba", "optimizer.schedule_from=8ba", "optimizer.schedule_length=20ba"]
    parts = rates(load_recipe(recipe_file, first), 8) + rates(load_recipe(recipe_file, second), 12)
    assert parts == whole
    # Without a length, the schedule ends with the run.
    assert rates(load_recipe(recipe_file, second[:2]), 12) == whole[8:]


def test_a_schedule_that_ends_before_the_run_is_refused(recipe_file):
    given = ["run.duration=8ba", "optimizer.schedule_from=8ba", "optimizer.schedule_length=15ba"]
    with pytest.raises(UserError, match="found 15ba, expected at least the run's last step in"):
        load_recipe(recipe_file, given)
