"""Simulated runs: the same samples for any world size, prefetch and interruptions."""

import json
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import SCALE, MixturePlan
from llmshearing.mixture.sampler import DomainSource, Sampler

PREFETCH = 4


def new_sampler(rows, weights, passes=None, then="stop", seed=17):
    sources = [DomainSource(f"d{i}", n, max(1, n // 3), passes, then) for i, n in enumerate(rows)]
    return Sampler(sources, MixturePlan.start(weights), seed, window=2, memory=PREFETCH + 2)


class Run:
    """One process per rank with its own sampler, reading ahead as its workers would."""

    def __init__(self, make, batch, world_size, ahead, state=None):
        self.ranks = [make() for _ in range(world_size)]
        self.batch, self.ahead, self.trained = batch, ahead, 0
        if state is not None:
            for sampler in self.ranks:
                sampler.load_state_dict(json.loads(state))
            self.trained = self.ranks[0].cursor.sample
        self.queues = [deque() for _ in self.ranks]

    def step(self):
        """The next global batch [G, 3] of (sample, domain, row), or None."""
        parts = []
        for rank, (sampler, queue) in enumerate(zip(self.ranks, self.queues, strict=True)):
            while len(queue) <= self.ahead and (found := sampler.take(self.batch)) is not None:
                mine = found.share(rank, len(self.ranks))
                queue.append(np.stack([mine.sample, mine.domain, sampler.rows(mine)], 1))
            if not queue:
                return None
            parts.append(queue.popleft())
        self.trained += self.batch
        return np.concatenate(parts)

    def update(self, weights):
        for sampler in self.ranks:
            sampler.update(self.trained + PREFETCH * self.batch, weights)

    def state(self):
        states = [json.dumps(sampler.state_dict(self.trained)) for sampler in self.ranks]
        assert len(set(states)) == 1
        return states[0]


mixtures = st.lists(st.floats(0.01, 1), min_size=2, max_size=5)


@st.composite
def schedules(draw):
    raw = draw(mixtures)
    k = len(raw)
    rows = draw(st.lists(st.integers(3, 60), min_size=k, max_size=k))
    events = st.one_of(
        st.just(("step", None)),
        st.tuples(st.just("update"), st.lists(st.floats(0.01, 1), min_size=k, max_size=k)),
        st.tuples(
            st.just("killed"), st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, PREFETCH))
        ),
    )
    return raw, rows, draw(st.sampled_from([4, 8, 12])), draw(st.lists(events, max_size=30))


def normal(raw):
    return np.array(raw) / sum(raw)


@settings(max_examples=200, deadline=None, print_blob=True)
@given(schedules())
def test_interrupted_runs_read_the_samples_of_an_uninterrupted_run(schedule):
    raw, rows, batch, events = schedule

    def make():
        return new_sampler(rows, normal(raw))

    plain = Run(make, batch, world_size=1, ahead=0)
    run = Run(make, batch, world_size=2, ahead=2)
    seen, saved = [], run.state()
    for kind, what in [*events, ("step", None), ("step", None)]:
        if kind == "step":
            expected = plain.step()
            np.testing.assert_array_equal(run.step(), expected)
            seen.append(expected)
            saved = run.state()
        elif kind == "update":
            plain.update(normal(what))
            run.update(normal(what))
            saved = run.state()
        else:
            run = Run(make, batch, *what, state=saved)
    check_samples(np.concatenate(seen), plain.ranks[0], rows)


def check_samples(seen, sampler, rows):
    """Numbers without gaps, every row once per pass, and each segment's counts within one."""
    np.testing.assert_array_equal(seen[:, 0], np.arange(len(seen)))
    for domain, n in enumerate(rows):
        mine = seen[seen[:, 1] == domain, 2]
        for start in range(0, len(mine), n):
            part = mine[start : start + n]
            assert len(set(part.tolist())) == len(part)
            assert part.max() < n
    starts = [segment.first for segment in sampler.plan.segments] + [len(seen)]
    for segment, stop in zip(sampler.plan.segments, starts[1:], strict=True):
        part = seen[segment.first : max(segment.first, min(stop, len(seen))), 1]
        counts = np.cumsum(part[:, None] == np.arange(len(rows)), axis=0)
        expected = np.arange(1, len(part) + 1)[:, None] * np.array(segment.weights) / SCALE
        assert (np.abs(counts - expected) <= 1).all()


@pytest.mark.parametrize("world_size", [8, 128, 1024])
def test_every_world_size_reads_the_same_global_batches(world_size):
    def make():
        return new_sampler([5000, 300, 70], [0.6, 0.3, 0.1])

    one = Run(make, 1024, 1, 0)
    many = Run(make, 1024, world_size, 0)
    for _ in range(4 if world_size == 8 else 1):
        np.testing.assert_array_equal(many.step(), one.step())


def test_each_pass_of_a_repeated_domain_has_another_order():
    sampler = new_sampler([50, 10], [0.5, 0.5])
    found = sampler.take(100)
    rows = sampler.rows(found)[found.domain == 1]
    assert len(rows) == 50
    passes = rows.reshape(5, 10)
    assert all(sorted(one) == list(range(10)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 5


def test_a_domain_set_to_stop_ends_the_run_before_a_batch_it_cannot_fill():
    sampler = new_sampler([1000, 10], [0.5, 0.5], passes=1)
    assert np.bincount(sampler.take(20).domain).tolist() == [10, 10]
    assert not sampler.used_up
    assert sampler.take(2) is None  # not one more row of the second domain
    assert sampler.used_up
    assert sampler.cursor.sample == 20
    assert sampler.take(20) is None


def test_the_weight_of_a_dropped_domain_goes_to_the_others():
    sampler = new_sampler([1000, 1000, 10], [0.25, 0.25, 0.5], passes=1, then="drop")
    counts = np.bincount(sampler.take(220).domain, minlength=3)
    assert counts[2] == 10
    assert abs(counts[0] - counts[1]) <= 2
    assert sampler.weights(sampler.cursor) == (SCALE // 2, SCALE // 2, 0)


def test_a_dropped_domain_stays_dropped_after_an_update_and_a_resume():
    sampler = new_sampler([1000, 10], [0.5, 0.5], passes=1, then="drop")
    sampler.take(40)
    sampler.update(60, [0.1, 0.9])
    state = json.dumps(sampler.state_dict())
    again = new_sampler([1000, 10], [0.5, 0.5], passes=1, then="drop")
    again.load_state_dict(json.loads(state))
    assert set(again.take(100).domain) == {0}


def test_the_run_ends_when_all_domains_are_dropped():
    sampler = new_sampler([12, 10], [0.5, 0.5], passes=1, then="drop")
    assert sampler.take(22) is not None
    assert sampler.take(1) is None


def test_domains_are_dropped_at_the_same_sample_after_an_interruption():
    def make():
        return new_sampler([200, 30, 20], [0.4, 0.3, 0.3], passes=1, then="drop")

    plain, run = Run(make, 8, 1, 0), Run(make, 8, 2, 3)
    for number in range(31):
        np.testing.assert_array_equal(run.step(), plain.step())
        if number % 3 == 0:
            run = Run(make, 8, 1 + number % 2, number % PREFETCH, run.state())
    assert run.step() is None
    assert plain.step() is None


def test_weights_cannot_change_for_samples_already_taken():
    sampler = new_sampler([100, 100], [0.5, 0.5])
    sampler.take(10)
    with pytest.raises(ValueError, match="sample 9 was taken already"):
        sampler.update(9, [0.1, 0.9])


def test_rewinding_to_a_batch_gives_it_again():
    sampler = new_sampler([100, 100], [0.5, 0.5])
    first = [sampler.take(8) for _ in range(4)]
    sampler.rewind(16)
    again = sampler.take(8)
    np.testing.assert_array_equal(again.position, first[2].position)
    with pytest.raises(ValueError, match="no batch starts at sample 5"):
        sampler.rewind(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 18}, "seed 17, expected 18"),
        ({"rows": [100, 101]}, r"rows \[100, 100\]"),
        ({"weights": [0.2, 0.3, 0.5], "rows": [100, 100, 100]}, "domains"),
    ],
)
def test_a_state_of_other_data_is_refused(change, message):
    state = new_sampler([100, 100], [0.5, 0.5]).state_dict()
    other = new_sampler(**{"rows": [100, 100], "weights": [0.5, 0.5], **change})
    with pytest.raises(UserError, match=message):
        other.load_state_dict(state)


def test_a_state_written_before_the_rename_of_deficit_is_read():
    sampler = new_sampler([100, 100], [0.3, 0.7])
    sampler.take(7)
    state = sampler.state_dict()
    state["owed"] = state.pop("deficit")
    again = new_sampler([100, 100], [0.3, 0.7])
    again.load_state_dict(state)
    assert again.cursor == sampler.cursor
