"""Memory, state and time of a run's data order do not grow with the data."""

import json
import time
import tracemalloc

import numpy as np
import pytest

from llmshearing.mixture.mixture_plan import MixturePlan
from llmshearing.mixture.policies import POLICIES, Limits, update
from llmshearing.mixture.sampler import DomainSource, Sampler

WEIGHTS = np.array([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])


def new_sampler(rows):
    sources = [DomainSource(f"d{i}", max(1, int(rows * w)), 8192) for i, w in enumerate(WEIGHTS)]
    return Sampler(sources, MixturePlan.start(WEIGHTS), 17)


def run(rows, updates):
    sampler, rng = new_sampler(rows), np.random.default_rng(0)
    for _ in range(updates):
        sampler.take(16)
        sampler.update(sampler.cursor.sample, rng.dirichlet(np.ones(7)))
    return sampler


@pytest.mark.parametrize("rows", [10**6, 10**8, 10**10])
def test_memory_and_time_of_the_first_batch_after_a_resume(rows):
    state = json.loads(json.dumps(run(rows, 100).state_dict()))
    state["sample"] += 10**6  # far into the last segment
    tracemalloc.start()
    begun = time.perf_counter()
    sampler = new_sampler(rows)
    sampler.load_state_dict(state)
    found = sampler.take(256)
    numbers = sampler.rows(found)
    seconds = time.perf_counter() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1_000_000
    assert (numbers < [sampler.sources[d].rows for d in found.domain]).all()


def test_the_state_after_a_thousand_updates_is_small():
    import io

    import torch

    file = io.BytesIO()
    torch.save(run(10**10, 1000).state_dict(), file)
    assert len(file.getvalue()) < 64 * 1024


@pytest.mark.parametrize("policy", POLICIES)
def test_an_update_takes_little_time(policy):
    rng, times = np.random.default_rng(0), []
    sampler = run(10**10, 1000)
    for _ in range(20):
        losses, references = rng.uniform(1, 3, 7), rng.uniform(1, 3, 7)
        begun = time.perf_counter()
        weights = update(policy, WEIGHTS, losses, references, Limits.none(WEIGHTS))
        sampler.update(sampler.cursor.sample, weights)
        times.append(time.perf_counter() - begun)
    assert np.median(times) < 0.05
