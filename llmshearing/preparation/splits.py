"""Which documents each split takes: a seeded hash orders them, and each split takes a stretch.

Hashes are compared by their first `BUCKET_BITS` bits, so a table of fixed size counts the tokens of
any number of documents.
"""

from dataclasses import dataclass

import numpy as np

BUCKET_BITS = 16
BUCKETS = 1 << BUCKET_BITS


@dataclass(frozen=True)
class Ask:
    """What a split asks of a domain: a number of tokens, or a share of what is left."""

    split: str
    tokens: int | None
    share: float | None


@dataclass(frozen=True)
class Cut:
    """A split's stretch of a domain's hashes."""

    split: str
    begin: int  # first bucket
    end: int  # bucket after the last
    tokens: int  # of the documents in it
    asked: int | None  # tokens asked for; None for a share

    @property
    def lacks(self) -> int:
        """Tokens asked for that the text does not have."""
        return max(0, (self.asked or 0) - self.tokens)


def buckets(hashes: np.ndarray) -> np.ndarray:
    """Return the bucket of each hash."""
    return (hashes >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)


def contains(values: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return for each hash whether it is one of some sorted values."""
    if not len(values):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(values, hashes)
    return values[np.minimum(places, len(values) - 1)] == hashes


def cut(tokens: np.ndarray, asks: list[Ask], begin: int = 0) -> list[Cut]:
    """Divide the buckets from `begin` on among splits, in the order in which they ask.

    A budget takes the fewest buckets that hold it. A share takes the number of buckets that comes
    nearest to it, but at least one document, and leaves at least one for later splits if it can.
    `tokens` is the number of tokens in each bucket.
    """
    total = np.concatenate([[0], np.cumsum(tokens)])  # tokens before each boundary
    filled = np.flatnonzero(tokens)
    cuts = []
    for place, ask in enumerate(asks):
        left = int(total[-1] - total[begin])
        if ask.tokens is not None:
            end = int(np.searchsorted(total, total[begin] + min(ask.tokens, left)))
        elif ask.share == 1 or not left:
            end = len(tokens)
        else:
            ends = filled[filled >= begin] + 1
            if place + 1 < len(asks) and len(ends) > 1:
                ends = ends[:-1]
            goal = total[begin] + (ask.share or 0) * left
            end = int(ends[np.argmin(np.abs(total[ends] - goal))])
        end = max(begin, end)
        cuts.append(Cut(ask.split, begin, end, int(total[end] - total[begin]), ask.tokens))
        begin = end
    return cuts


def keep_bound(asks: list[Ask], estimate: int, oversample: float, small: int) -> int:
    """Return the bound on the hashes of the documents to tokenise: all if the domain is small."""
    if estimate <= small or any(ask.tokens is None for ask in asks):
        return 1 << 64
    return bound_of(sum(ask.tokens or 0 for ask in asks) * oversample / estimate)


def bound_of(part: float) -> int:
    """Return the bound on the hashes of a part of all documents, at the end of a bucket."""
    return 1 << 64 if part >= 1 else -int(-part * BUCKETS // 1) << (64 - BUCKET_BITS)
