"""Passages that were seen before, known by their runs of words."""

from __future__ import annotations

import re
from hashlib import blake2b

PASSAGE_BREAK = re.compile(r"\n[ \t]*\n")
WORD = re.compile(r"\w+")
RUN_LENGTH = 8
MOST_REPEATED = 0.5


class Seen:
    """Remembers runs of eight words and takes passages out that consist of known ones.

    A passage ends at an empty line. Case, punctuation and line breaks do not count, so that a
    licence is known again after it was wrapped anew. Passages of fewer words always stay.
    """

    def __init__(self) -> None:
        self._runs: set[bytes] = set()

    def without_repeats(self, text: str) -> str:
        """Give the passages of `text` of which at most half was seen before, and remember them."""
        return "\n\n".join(p for p in PASSAGE_BREAK.split(text) if p.strip() and self._is_new(p))

    def _is_new(self, passage: str) -> bool:
        words = WORD.findall(passage.lower())
        if len(words) < RUN_LENGTH:
            return True
        runs = [
            blake2b(" ".join(words[i : i + RUN_LENGTH]).encode(), digest_size=8).digest()
            for i in range(len(words) - RUN_LENGTH + 1)
        ]
        repeated = sum(run in self._runs for run in runs)
        self._runs.update(runs)
        return repeated <= MOST_REPEATED * len(runs)
