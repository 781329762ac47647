"""The expected and realised use of the data."""

import pytest

from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.sampler import DomainSource, Sampler
from llmshearing.mixture.usage import expected_use, realised, use_table

SOURCES = [
    DomainSource("cc", 1000, 10),
    DomainSource("wiki", 100, 10, passes=1, then="drop"),
    DomainSource("arxiv", 100, 10, passes=2),
]


def test_passes_follow_from_weights_and_length():
    uses = expected_use(SOURCES, [0.5, 0.3, 0.2], 1000)
    assert [use.passes for use in uses] == pytest.approx([0.5, 3.0, 2.0])
    assert [use.fits for use in uses] == [True, False, True]


def test_samples_already_used_count():
    uses = expected_use(SOURCES, [0.5, 0.3, 0.2], 100, used=[0, 80, 200])
    assert [use.fits for use in uses] == [True, False, False]


def test_the_table_says_which_domains_are_used_up():
    uses = expected_use(SOURCES, [0.5, 0.25, 0.25], 1000)
    lines = str(use_table(uses, sequence_length=256)).splitlines()
    assert lines[1].split() == ["cc", "1,000", "256,000", "0.5000", "500", "0.50"]
    assert lines[2].endswith("2.50  used up: dropped after 1 pass")
    assert lines[3].endswith("2.50  used up: the run stops after 2 passes")


def test_the_realised_use_counts_samples_up_to_the_given_one():
    sampler = Sampler(SOURCES, MixturePlan.start([0.5, 0.25, 0.25]), 17)
    sampler.take(8)
    sampler.take(8)
    found = realised(sampler, 8, sequence_length=256)
    assert found["shares"] == {"cc": 0.5, "wiki": 0.25, "arxiv": 0.25}
    assert found["tokens"] == {"cc": 1024, "wiki": 512, "arxiv": 512}
    assert found["passes"] == {"cc": 0.004, "wiki": 0.02, "arxiv": 0.02}
    assert realised(sampler, 0, 256)["shares"] == {"cc": 0, "wiki": 0, "arxiv": 0}
