"""The `mixture` section: every mistake told, and what the settings mean."""

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_file import write_mixture
from llmshearing.mixture.settings import (
    DomainSettings,
    MixtureSettings,
    batches,
    domain_settings,
    limits,
    problems,
    starting_weights,
    supply,
)

DOMAINS = ["cc", "wiki"]


def test_the_defaults_are_sound():
    assert problems(MixtureSettings(), DOMAINS) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "papper"}, "mixture.policy: found 'papper', expected one of"),
        ({"signal": "test"}, "mixture.signal: found 'test'"),
        ({"used_up": "again"}, "mixture.used_up: found 'again'"),
        ({"update_interval": "50"}, "expected steps with a unit"),
        ({"update_interval": "0ba"}, "expected steps with a unit"),
        ({"eta": -1.0}, "mixture.eta: found -1.0, expected 0 or more"),
        ({"floor": 1.5}, "mixture.floor: found 1.5, expected from 0 to 1"),
        ({"first_update": 0}, "mixture.first_update: found 0"),
        ({"weights": {"cc": 0.5, "wiki": 0.4}}, "they sum to 0.9, expected 1"),
        ({"weights": {"cc": 1.0}}, "no entry for wiki"),
        ({"weights": {"cc": 0.5, "wiki": 0.3, "wikki": 0.2}}, "unknown domain wikki; did you mean"),
        ({"weights": {"cc": -0.5, "wiki": 1.5}}, "expected finite numbers"),
        ({"weights": {"cc": float("nan"), "wiki": 1.0}}, "expected finite numbers"),
        ({"policy": "paper"}, "policy paper needs the loss to reach"),
        ({"floor": 0.6}, "the floors sum to 1.2"),
        ({"ceiling": 0.4}, "the ceilings sum to 0.8"),
        ({"domains": {"wiki": {"celing": 1}}}, "mixture.domains.wiki.celing: unknown key; known"),
        ({"domains": {"wiki": {"eta": "fast"}}}, "wiki.eta: found 'fast', expected a number"),
        ({"domains": {"wiki": 0.1}}, "mixture.domains.wiki: found 0.1, expected keys"),
        ({"domains": {"wikki": {}}}, "mixture.domains: unknown domain wikki"),
        ({"domains": {"wiki": {"ceiling": 2}}}, "mixture.domains.wiki.ceiling: found 2"),
        ({"domains": {"wiki": {"used_up": "x"}}}, "mixture.domains.wiki.used_up"),
        ({"ceiling": 0.5, "domains": {"wiki": {"floor": 0.6}}}, "floor 0.6 above"),
    ],
)
def test_each_mistake_is_one_message(change, message):
    errors = problems(replace(MixtureSettings(), **change), DOMAINS)
    assert len(errors) == 1, errors
    assert message in errors[0]


def test_all_mistakes_are_told_at_once():
    wrong = MixtureSettings(policy="x", eta=-1.0, weights={"cc": 1.0}, window=0)
    assert len(problems(wrong, DOMAINS)) == 4


def test_the_section_is_one_that_a_recipe_can_hold():
    config = OmegaConf.structured(MixtureSettings)
    OmegaConf.update(config, "domains", {"wiki": {"ceiling": 0.1, "used_up": "drop"}}, merge=False)
    found = OmegaConf.to_object(config)
    assert domain_settings(found, "wiki") == DomainSettings(ceiling=0.1, used_up="drop")
    assert domain_settings(found, "cc") == DomainSettings()


def test_domains_override_the_section():
    own = {"wiki": {"eta": 0.5, "ceiling": 0.2, "used_up": "drop", "max_passes": 3}}
    section = MixtureSettings(eta=2.0, floor=0.01, domains=own)
    found = limits(section, DOMAINS, [0.5, 0.5])
    np.testing.assert_array_equal(found.eta, [2.0, 0.5])
    np.testing.assert_array_equal(found.floor, [0.01, 0.01])
    np.testing.assert_array_equal(found.ceiling, [1.0, 0.2])
    assert (supply(section, "cc", 10, 5).passes, supply(section, "cc", 10, 5).then) == (
        None,
        "stop",
    )
    wiki = supply(section, "wiki", 10, 5)
    assert (wiki.passes, wiki.then) == (3, "drop")


def test_stop_and_drop_mean_one_pass():
    assert supply(MixtureSettings(used_up="stop"), "cc", 10, 5).limit == 10
    assert supply(MixtureSettings(used_up="drop"), "cc", 10, 5).limit == 10
    assert supply(MixtureSettings(max_passes=2), "cc", 10, 5).limit == 20


def test_weights_at_the_start_are_within_their_bounds():
    shares = MixtureSettings(ceiling=0.7)
    np.testing.assert_allclose(starting_weights(shares, DOMAINS, [90, 10]), [0.7, 0.3])
    given = MixtureSettings(weights={"wiki": 0.1, "cc": 0.9}, domains={"wiki": {"floor": 0.2}})
    np.testing.assert_allclose(starting_weights(given, DOMAINS, [1, 1]), [0.8, 0.2])


def test_weights_at_the_start(tmp_path):
    np.testing.assert_allclose(starting_weights(MixtureSettings(), DOMAINS, [30, 10]), [0.75, 0.25])
    given = MixtureSettings(weights={"wiki": 0.4, "cc": 0.6})
    np.testing.assert_allclose(starting_weights(given, DOMAINS, [30, 10]), [0.6, 0.4])
    path = tmp_path / "mixture.yaml"
    write_mixture(path, {"weights": {"wiki": 0.9, "cc": 0.1}, "shares": {"wiki": 0.8, "cc": 0.2}})
    last = MixtureSettings(start_from=str(path))
    np.testing.assert_allclose(starting_weights(last, DOMAINS, [30, 10]), [0.1, 0.9])
    realised = MixtureSettings(start_from=str(path), start_with="shares")
    np.testing.assert_allclose(starting_weights(realised, DOMAINS, [30, 10]), [0.2, 0.8])


def test_a_mixture_of_other_domains_is_refused(tmp_path):
    path = tmp_path / "mixture.yaml"
    write_mixture(path, {"weights": {"cc": 0.5, "arxiv": 0.5}})
    with pytest.raises(UserError, match=r"unknown domain arxiv.*no entry for wiki"):
        starting_weights(MixtureSettings(start_from=str(path)), DOMAINS, [1, 1])


def test_steps_of_a_time():
    assert batches("50ba") == 50
    with pytest.raises(ValueError, match="50ep"):
        batches("50ep")
