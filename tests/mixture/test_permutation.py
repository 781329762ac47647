"""The keyed bijection, and the order of rows that it gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.mixture.permutation import RowOrder, permute


def rows_of(rows, block, window, positions, seed=3, domain=1):
    order = RowOrder.of([7, rows], [3, block], window)
    return order.row(seed, np.full(len(positions), domain), np.asarray(positions))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 700), st.integers(1, 9), st.integers(0, 5))
def test_every_pass_gives_every_row_once(rows, block, window, number):
    found = rows_of(rows, block, window, np.arange(number * rows, (number + 1) * rows))
    np.testing.assert_array_equal(np.sort(found), np.arange(rows))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63))
def test_permute_is_a_bijection(size, key):
    words = np.arange(size, dtype=np.uint64)
    found = permute(words, np.full_like(words, size), np.full_like(words, key))
    np.testing.assert_array_equal(np.sort(found), words)


def test_a_row_does_not_depend_on_the_other_positions_asked_for():
    together = rows_of(1000, 64, 4, np.arange(3000))
    alone = [rows_of(1000, 64, 4, [n])[0] for n in range(0, 3000, 97)]
    np.testing.assert_array_equal(together[::97], alone)


def test_passes_seeds_and_domains_have_different_orders():
    first = rows_of(1000, 100, 10, np.arange(1000))
    again = rows_of(1000, 100, 10, np.arange(1000, 2000))
    seeded = rows_of(1000, 100, 10, np.arange(1000), seed=4)
    order = RowOrder.of([1000, 1000], [100, 100], 10)
    other = order.row(3, np.zeros(1000, int), np.arange(1000))
    for found in (again, seeded, other, np.arange(1000)):
        assert (first == found).mean() < 0.02


def test_a_window_reads_only_its_blocks():
    found = rows_of(10_000, 100, 4, np.arange(10_000))
    for start in range(0, 10_000, 400):
        assert len(np.unique(found[start : start + 400] // 100)) == 4


def test_a_window_shuffles_its_blocks_together():
    found = rows_of(10_000, 100, 4, np.arange(10_000))
    changes = (found[1:] // 100 != found[:-1] // 100).mean()
    assert changes > 0.6  # 3/4 where rows are drawn from four blocks at random


def test_every_window_has_an_order_of_its_own():
    found = rows_of(10_000, 100, 1, np.arange(10_000))
    orders = {tuple(window) for window in (found % 100).reshape(100, 100).tolist()}
    assert len(orders) == 100


def test_rows_are_not_next_to_their_neighbours():
    found = rows_of(100_000, 100_000, 1, np.arange(100_000))
    assert np.abs(np.diff(found) == 1).mean() < 1e-3
    # the rank correlation of two passes and of a pass with the file's order is that of chance
    again = rows_of(100_000, 100_000, 1, np.arange(100_000, 200_000))
    for other in (again, np.arange(100_000)):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.02


@pytest.mark.parametrize("rows", [10**6, 10**8, 10**10])
def test_large_domains_need_no_array_of_their_size(rows):
    positions = np.array([0, 1, rows // 2, rows - 1, rows, 3 * rows + 5])
    found = rows_of(rows, 8192, 8, positions)
    assert ((found >= 0) & (found < rows)).all()
    assert len(set(found.tolist())) == len(positions)


def test_all_orders_of_a_small_domain_are_equally_likely():
    """Over many keys, each of the six orders of three rows is about as frequent."""
    keys = np.arange(6000, dtype=np.uint64).repeat(3) * np.uint64(0x9E3779B97F4A7C15)
    index = np.tile(np.arange(3, dtype=np.uint64), 6000)
    found = permute(index, np.full_like(index, 3), keys).reshape(-1, 3)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 700
    assert counts.max() < 1300
