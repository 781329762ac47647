"""The `pruning` section: presets, and names that have to exist elsewhere."""

from typing import get_args

import pytest
import torch

from llmshearing.config import load_recipe
from llmshearing.pruning.distributions import DISTRIBUTIONS
from llmshearing.pruning.settings import PruningSettings
from llmshearing.typed_yaml import build


def test_the_paper_preset_differs_in_exactly_seven_keys():
    ours, paper = PruningSettings().model_dump(), PruningSettings(preset="paper").model_dump()
    differences = {key: (ours[key], paper[key]) for key in ours if ours[key] != paper[key]}
    assert differences.pop("preset") == ("default", "paper")
    assert differences == {
        "distribution": ("linear", "paper"),  # hard concrete, beta 0.83
        "constraint": ("released", "paper"),  # counts, a pair of multipliers per layer
        "sharpness": (8.0, 1.0),
        "freeze": ("0.9dur", "1dur"),  # never
        "linear_learning_rate": (0.2, 1.0),  # one rate for masks and multipliers
        "final_fraction": (0.1, 1.0),  # which stays constant
        "start": ("auto", "uniform"),
    }


def test_a_key_given_next_to_a_preset_wins(recipe_file):
    recipe = load_recipe(recipe_file, ["pruning.preset=paper", "pruning.sharpness=2"])
    assert recipe.pruning.sharpness == 2
    assert recipe.pruning.distribution == "paper"
    _, (error,) = build(PruningSettings, {"preset": "papper"})
    assert error == "preset: found 'papper', expected 'default' or 'paper'"


def test_names_are_those_that_exist():
    fields = PruningSettings.model_fields
    assert {*get_args(fields["distribution"].annotation)} == {*DISTRIBUTIONS}
    assert {*get_args(fields["constraint"].annotation)} == {"paper", "released"}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("start", [-4.9, -1.0, 0.0, 0.01, 3.0])
def test_initial_logits_are_refused_if_no_noise_switches_a_unit_on(name, start):
    logits, most_noise = torch.tensor([start]), torch.tensor([1 - 1e-6])
    off = DISTRIBUTIONS[name].sample(logits, most_noise).item() == 0
    assert bool(PruningSettings(distribution=name, init_log_alpha=start).rules()) == off
    spread = {"importance": "scores", "importance_spread": 0.02 - min(start, 0.0)}
    assert not PruningSettings(distribution=name, init_log_alpha=start, **spread).rules()
