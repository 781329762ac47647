"""The `mixture` section: every mistake is reported, and what the settings mean."""

import math
from typing import get_args

import numpy as np
import pytest

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_file import write_mixture
from llmshearing.mixture.policies import POLICIES
from llmshearing.mixture.settings import (
    DomainSettings,
    MixtureSettings,
    domain_source,
    limits,
    problems,
    starting_weights,
)
from llmshearing.typed_yaml import build

DOMAINS = ["cc", "wiki"]


def test_the_defaults_are_sound():
    assert problems(MixtureSettings(), DOMAINS) == []


def errors_of(**given):
    settings, errors = build(MixtureSettings, given)
    return errors or problems(settings, DOMAINS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "papper"}, "policy: found 'papper', expected 'constant', 'paper', 'released'"),
        ({"signal": "test"}, "signal: found 'test', expected 'held_out' or 'train'"),
        ({"used_up": "again"}, "used_up: found 'again', expected 'repeat', 'stop' or 'drop'"),
        ({"update_interval": "50"}, "expected steps with a unit"),
        ({"update_interval": "0ba"}, "expected steps with a unit"),
        ({"eta": -1.0}, "eta: found -1.0, expected 0 or more"),
        ({"eta": math.inf}, "eta: found inf, expected a finite number"),
        ({"floor": 1.5}, "floor: found 1.5, expected at most 1"),
        ({"first_update": 0}, "first_update: found 0, expected 1 or more"),
        ({"weights": {"cc": 0.5, "wiki": 0.4}}, "mixture.weights: found a sum of 0.9"),
        ({"weights": {"cc": 1.0}}, "no entry for wiki"),
        ({"weights": {"cc": 0.5, "wiki": 0.3, "wikki": 0.2}}, "unknown domain wikki; did you mean"),
        ({"weights": {"cc": -0.5, "wiki": 1.5}}, "weights.cc: found -0.5, expected 0 or more"),
        ({"weights": {"cc": math.nan, "wiki": 1.0}}, "weights.cc: found nan, expected a finite"),
        ({"weights": {"cc": 0.5, "wiki": 0.5}, "start_from": "f"}, "found both weights and start_"),
        ({"policy": "paper"}, "policy paper needs the loss to reach"),
        ({"floor": 0.6}, "the floors sum to 1.2"),
        ({"ceiling": 0.4}, "the ceilings sum to 0.8"),
        ({"domains": {"wiki": {"celing": 1}}}, "domains.wiki.celing: unknown key in domains.wiki;"),
        ({"domains": {"wiki": {"eta": "fast"}}}, "wiki.eta: found 'fast', expected a number"),
        ({"domains": {"wiki": 0.1}}, "domains.wiki: found 0.1, expected a section"),
        ({"domains": {"wikki": {}}}, "mixture.domains: unknown domain wikki"),
        ({"domains": {"wiki": {"ceiling": 2}}}, "domains.wiki.ceiling: found 2, expected at most"),
        ({"domains": {"wiki": {"used_up": "x"}}}, "domains.wiki.used_up: found 'x'"),
        ({"ceiling": 0.5, "domains": {"wiki": {"floor": 0.6}}}, "floor 0.6 above"),
    ],
)
def test_each_mistake_is_one_message(change, message):
    errors = errors_of(**change)
    assert len(errors) == 1, errors
    assert message in errors[0]


def test_all_mistakes_are_reported_at_once():
    assert len(errors_of(policy="x", eta=-1.0, weights={"cc": -1.0}, window=0)) == 4


def test_policies_are_those_that_exist():
    assert {*get_args(MixtureSettings.model_fields["policy"].annotation)} == {*POLICIES}


def test_only_what_differs_for_a_domain_is_kept():
    settings = MixtureSettings(domains={"wiki": {"ceiling": 0.1, "used_up": "drop"}, "cc": None})
    assert settings.domains["wiki"] == DomainSettings(ceiling=0.1, used_up="drop")
    own = settings.model_dump()["domains"]
    assert own == {"wiki": {"ceiling": 0.1, "used_up": "drop"}, "cc": {}}


def test_domains_override_the_section():
    own = {"wiki": {"eta": 0.5, "ceiling": 0.2, "used_up": "drop", "max_passes": 3}}
    section = MixtureSettings(eta=2.0, floor=0.01, domains=own)
    found = limits(section, DOMAINS, [0.5, 0.5])
    np.testing.assert_array_equal(found.eta, [2.0, 0.5])
    np.testing.assert_array_equal(found.floor, [0.01, 0.01])
    np.testing.assert_array_equal(found.ceiling, [1.0, 0.2])
    assert (
        domain_source(section, "cc", 10, 5).passes,
        domain_source(section, "cc", 10, 5).then,
    ) == (
        None,
        "stop",
    )
    wiki = domain_source(section, "wiki", 10, 5)
    assert (wiki.passes, wiki.then) == (3, "drop")


def test_stop_and_drop_mean_one_pass():
    assert domain_source(MixtureSettings(used_up="stop"), "cc", 10, 5).limit == 10
    assert domain_source(MixtureSettings(used_up="drop"), "cc", 10, 5).limit == 10
    assert domain_source(MixtureSettings(max_passes=2), "cc", 10, 5).limit == 20


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
