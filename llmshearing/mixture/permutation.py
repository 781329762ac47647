"""The order of rows within a domain: a keyed bijection, computed for the rows asked for.

A domain consists of blocks of about a shard. A pass visits the blocks in a permuted order and
shuffles the rows of a window of several blocks, so that it reads only the window's shards at a
time. Nothing of the dataset's size is kept in memory. The bijection is a Feistel network over the
smallest rectangle that holds the rows, applied again while the result is outside them (cycle
walking: Black and Rogaway, CT-RSA 2002).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Two rounds for each half: four in all.
_ROUND_KEYS = np.array([[1, 2], [3, 4]], np.uint64) * _GOLDEN
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class RowOrder:
    """The order of the rows of all domains, [k] each."""

    rows: Words  # number of rows
    block: Words  # rows in a block; the last block may be shorter
    window: Words  # rows that are shuffled together, a multiple of the block

    @classmethod
    def of(cls, rows: Sequence[int], blocks: Sequence[int], window: int) -> "RowOrder":
        """An order with windows of `window` blocks; no block is larger than its domain."""
        block = [max(1, min(b, r)) for b, r in zip(blocks, rows, strict=True)]
        width = [max(1, window) * b for b in block]
        return cls(*(np.array(numbers, np.uint64) for numbers in (rows, block, width)))

    def row(
        self, seed: int, domain: NDArray[np.int64], position: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rows at positions [n], 0 or more, of the endless sequences of passes of domains [n].

        The pass is position // rows.

        Returns:
            Rows [n]; the positions of one pass of a domain give every row once.
        """
        rows, block, window = self.rows[domain], self.block[domain], self.window[domain]
        at = position.astype(np.uint64)
        start = np.full(len(at), seed % (1 << 64), np.uint64)
        key = _key(_key(start, domain.astype(np.uint64)), at // rows)
        within = at % rows
        first = within // window * window
        shuffled = permute(
            within - first, np.minimum(rows - first, window), _key(key, first + _ONE)
        )
        return _unblocked(first + shuffled, rows, block, _key(key, _ZERO)).astype(np.int64)


def _unblocked(places: Words, rows: Words, block: Words, key: Words) -> Words:
    """Rows at places of the permuted sequence of blocks [n].

    A short last block has a place of its own among the others.
    """
    full, tail = rows // block, rows % block
    before = _mixed(key) % (full + _ONE) * block  # first place of the short block
    in_tail = (places >= before) & (places - before < tail)
    others = np.where(places < before, places, places - np.minimum(places, tail))
    others = np.where(in_tail, _ZERO, others)
    blocks = permute(others // block, full, key)
    return np.where(in_tail, full * block + places - before, blocks * block + others % block)


def permute(index: Words, size: Words, key: Words) -> Words:
    """A bijection of [0, size) for every key, elementwise over equal shapes [n]."""
    width = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    height = (size + width - _ONE) // width
    result = _feistel(index, width, height, key)
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = _feistel(result[outside], width[outside], height[outside], key[outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(value: Words, width: Words, height: Words, key: Words) -> Words:
    """A bijection of [0, width * height)."""
    left, right = value // width, value % width
    for even, odd in _ROUND_KEYS:
        left = (left + _mixed((key + even) ^ right) % height) % height
        right = (right + _mixed((key + odd) ^ left) % width) % width
    return left * width + right


def _key(key: Words, part: Words | np.uint64) -> Words:
    return _mixed(_mixed(key) + part)


def _mixed(value: Words) -> Words:
    """The finaliser of splitmix64."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))
