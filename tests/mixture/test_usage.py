"""What is told of the data before a run begins."""

import pytest

from llmshearing.mixture.sampler import DomainSource
from llmshearing.mixture.usage import expected_use, table

SUPPLIES = [
    DomainSource("cc", 1000, 10),
    DomainSource("wiki", 100, 10, passes=1, then="drop"),
    DomainSource("arxiv", 100, 10, passes=2),
]


def test_passes_follow_from_weights_and_length():
    uses = expected_use(SUPPLIES, [0.5, 0.3, 0.2], 1000)
    assert [use.passes for use in uses] == pytest.approx([0.5, 3.0, 2.0])
    assert [use.fits for use in uses] == [True, False, True]


def test_what_was_used_counts():
    uses = expected_use(SUPPLIES, [0.5, 0.3, 0.2], 100, used=[0, 80, 200])
    assert [use.fits for use in uses] == [True, False, False]


def test_the_table_tells_what_will_happen():
    uses = expected_use(SUPPLIES, [0.5, 0.25, 0.25], 1000)
    lines = table(uses, sequence_length=256).splitlines()
    assert lines[1].split() == ["cc", "1,000", "256,000", "0.5000", "500", "0.50"]
    assert lines[2].endswith("2.50  used up: dropped after 1 pass")
    assert lines[3].endswith("2.50  used up: the run stops after 2 passes")
