"""Splits take stretches of hashes: budgets are met, shares are near, nothing is taken twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.preparation import packing, splits
from llmshearing.preparation.splits import Ask

NONE = np.zeros(0, np.uint64)
ASKS = st.one_of(
    st.builds(Ask, st.just("s"), st.integers(1, 3000), st.none()),
    st.builds(Ask, st.just("s"), st.none(), st.floats(0.01, 1)),
)
TOKENS = st.lists(st.integers(0, 300), min_size=1, max_size=60)


@given(TOKENS, st.lists(ASKS, max_size=3))
def test_budgets_take_the_fewest_buckets(tokens, asks):
    tokens = np.array(tokens)
    at = 0
    for cut, ask in zip(splits.cut(tokens, asks), asks, strict=True):
        assert cut.begin == at <= cut.end <= len(tokens), "stretches follow each other"
        at = cut.end
        assert cut.tokens == tokens[cut.begin : cut.end].sum()
        left = tokens[cut.begin :].sum()
        if ask.tokens is not None:
            assert cut.tokens >= min(ask.tokens, left)
            assert cut.end == cut.begin or tokens[cut.begin : cut.end - 1].sum() < ask.tokens
            assert cut.lacks == max(0, ask.tokens - left)
        elif ask.share == 1:
            assert cut.tokens == left
        else:
            assert cut.tokens > 0 or left == 0


@given(TOKENS, st.lists(ASKS, max_size=3), st.integers(0, 5))
def test_no_bucket_is_in_two_splits(tokens, asks, begin):
    """One document in each bucket, whose hash is the bucket's first or last."""
    tokens, begin = np.array(tokens), min(begin, len(tokens) - 1)
    shift = np.uint64(64 - splits.BUCKET_BITS)
    first = np.arange(len(tokens), dtype=np.uint64) << shift
    last = first + ((np.uint64(1) << shift) - np.uint64(1))
    cuts = splits.cut(tokens, [*asks, Ask("rest", None, 1.0)], begin)
    for hashes in (first, last):
        taken = sum(packing.chosen(hashes, cut, NONE).astype(int) for cut in cuts)
        assert np.array_equal(taken, np.arange(len(tokens)) >= begin)
        without = np.sort(hashes[::2])
        assert not packing.chosen(without, cuts[-1], without).any(), "excluded documents"


def test_a_share_is_the_nearest_that_leaves_something():
    def share(tokens, part):
        cuts = splits.cut(np.array(tokens), [Ask("a", None, part), Ask("b", None, 1.0)])
        return [cut.tokens for cut in cuts]

    assert share([10] * 10, 0.3) == [30, 70]
    assert share([89, 11], 0.3) == [89, 11]
    assert share([11, 89], 0.9) == [11, 89]
    assert share([50], 0.5) == [50, 0]


def test_how_many_documents_are_tokenised():
    budget = [Ask("prune", 10**6, None), Ask("continue", 10**7, None)]
    whole = 1 << 64
    assert splits.keep_bound(budget, 10**9, 1.25, 10**6) / whole == np.ceil(0.01375 * 65536) / 65536
    assert splits.keep_bound(budget, 10**9, 1.25, 10**9) == whole
    assert splits.keep_bound(budget, 10**7, 1.25, 10**6) == whole
    assert splits.keep_bound([*budget, Ask("eval", None, 0.1)], 10**9, 1.25, 0) == whole


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(0, 50)))
def test_contains_finds_the_same_as_a_set(values, hashes):
    found = splits.contains(np.unique(np.array(values, np.uint64)), np.array(hashes, np.uint64))
    assert found.tolist() == [one in set(values) for one in hashes]
