"""From global sample numbers to rows: the one place that decides what a run reads next.

The answer depends on the seed, the plan and the domains, never on the world size, the workers or
the interruptions. What must be kept to go on from any sample is a cursor: a few numbers per domain.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import DomainScheduler, Plan, masked
from llmshearing.mixture.permutation import Layout

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class DomainSource:
    """What a domain can give.

    Attributes:
        name: the domain.
        rows: number of rows.
        block: rows that lie together, e.g. in a shard.
        passes: how often the rows may be given; None for as often as asked.
        then: what happens once they are used up: `stop` ends the run, `drop` shares the domain's
            weight out to the others.
    """

    name: str
    rows: int
    block: int
    passes: int | None = None
    then: str = "stop"

    @property
    def limit(self) -> float:
        """Rows that it gives in all."""
        return float("inf") if self.passes is None else self.passes * self.rows


@dataclass(frozen=True)
class Cursor:
    """Where a run is.

    Attributes:
        sample: number of the next sample.
        positions: samples given so far, per domain.
        deficit: what the running segment owes, per domain; see `plan.DomainScheduler`.
    """

    sample: int
    positions: tuple[int, ...]
    deficit: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """Consecutive samples with the domains and positions they were given, [n] each."""

    sample: NDArray[np.int64]
    domain: NDArray[np.int64]
    position: NDArray[np.int64]

    def share(self, rank: int, world_size: int) -> Assignment:
        """One rank's part of a global batch; the ranks' parts follow each other."""
        size = len(self.sample) // world_size
        cut = slice(rank * size, (rank + 1) * size)
        return Assignment(self.sample[cut], self.domain[cut], self.position[cut])


class Sampler:
    """Hands out samples in order.

    Args:
        supplies: the domains; their order is their numbering.
        plan: the mixture.
        seed: of the permutations.
        window: blocks whose rows are mixed.
        memory: batches handed out whose start can be gone back to.
    """

    def __init__(
        self,
        supplies: Sequence[DomainSource],
        plan: Plan,
        seed: int,
        window: int = 8,
        memory: int = 64,
    ) -> None:
        self.supplies, self.plan, self.seed = tuple(supplies), plan, seed
        self.window = window
        self.layout = Layout.of(
            [supply.rows for supply in supplies], [supply.block for supply in supplies], window
        )
        nothing = (0,) * len(supplies)
        self.cursor = Cursor(0, nothing, nothing)
        self.used_up = False
        self._earlier: deque[Cursor] = deque(maxlen=memory)

    def take(self, count: int) -> Assignment | None:
        """The next `count` samples, or None once the data is used up and policies say to stop."""
        domains, places = np.empty(count, np.int64), np.empty(count, np.int64)
        cursor, done = self.cursor, 0
        while done < count and not self.used_up:
            cursor, dealt = self._deal(cursor, domains[done:], places[done:])
            done += dealt
        if self.used_up:
            return None
        self._earlier.append(self.cursor)
        first, self.cursor = self.cursor.sample, cursor
        return Assignment(np.arange(first, first + count), domains, places)

    def _deal(
        self, cursor: Cursor, domains: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[Cursor, int]:
        """Deal until the arrays are full, a segment ends or a domain is used up."""
        number, segments = self.plan.at(cursor.sample), self.plan.segments
        count = len(domains)
        if number + 1 < len(segments):
            count = min(count, segments[number + 1].first - cursor.sample)
        weights = self.weights(cursor, number)
        if not any(weights):
            return self._stop(cursor, "every domain")
        positions, nothing = list(cursor.positions), (0,) * len(weights)
        fresh = cursor.sample == segments[number].first
        dealer = DomainScheduler(weights, nothing if fresh else cursor.deficit)
        for done in range(count):
            domain = dealer.deal()
            supply, place = self.supplies[domain], positions[domain]
            if place >= supply.limit:
                return self._stop(cursor, f"domain {supply.name}")
            domains[done], places[done], positions[domain] = domain, place, place + 1
            if place + 1 >= supply.limit and supply.then == "drop":
                log.info(
                    "domain %s is used up after %s passes: dropped", supply.name, supply.passes
                )
                return Cursor(cursor.sample + done + 1, tuple(positions), nothing), done + 1
        return Cursor(cursor.sample + count, tuple(positions), tuple(dealer.deficit)), count

    def _stop(self, cursor: Cursor, what: str) -> tuple[Cursor, int]:
        log.info("%s is used up at sample %d: no further batch", what, cursor.sample)
        self.used_up = True
        return cursor, 0

    def weights(self, cursor: Cursor, segment: int | None = None) -> tuple[int, ...]:
        """The weights in force at a cursor, in units of 1 / plan.SCALE: without dropped domains."""
        number = self.plan.at(cursor.sample) if segment is None else segment
        alive = [
            supply.then != "drop" or position < supply.limit
            for supply, position in zip(self.supplies, cursor.positions, strict=True)
        ]
        return masked(self.plan.segments[number].weights, alive)

    def rows(self, assigned: Assignment) -> NDArray[np.int64]:
        """The rows within their domains of assigned samples, [n]."""
        return self.layout.row(self.seed, assigned.domain, assigned.position)

    def update(self, first: int, weights: ArrayLike) -> None:
        """Let other weights hold from sample `first` on.

        Raises:
            ValueError: that sample was handed out already.
        """
        if first < self.cursor.sample:
            raise ValueError(f"sample {first} was handed out; the next is {self.cursor.sample}")
        self.plan = self.plan.append(first, weights)

    def cursor_at(self, sample: int) -> Cursor:
        """Where the run was when `sample` was the next one; a batch must begin there.

        Raises:
            ValueError: too long ago, or not the start of a batch.
        """
        for cursor in (self.cursor, *reversed(self._earlier)):
            if cursor.sample == sample:
                return cursor
        raise ValueError(
            f"no batch begins at sample {sample}; the next sample is {self.cursor.sample}"
        )

    def rewind(self, sample: int) -> None:
        """Go back to a batch that was handed out but not used."""
        self.cursor, self.used_up = self.cursor_at(sample), False
        while self._earlier and self._earlier[-1].sample >= sample:
            self._earlier.pop()

    def state_dict(self, sample: int | None = None) -> dict[str, Any]:
        """What is needed to go on from `sample`: a few numbers per domain and segment.

        Args:
            sample: the first sample that was not used; by default the first not handed out.
        """
        cursor = self.cursor if sample is None else self.cursor_at(sample)
        return {
            "format": FORMAT,
            "seed": self.seed,
            "window": self.window,
            "domains": [supply.name for supply in self.supplies],
            "rows": [supply.rows for supply in self.supplies],
            "blocks": [supply.block for supply in self.supplies],
            "sample": cursor.sample,
            "positions": list(cursor.positions),
            "deficit": list(cursor.deficit),
            "segments": self.plan.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UserError: it belongs to other data or another seed.
        """
        own = self.state_dict()
        for key in ("format", "seed", "window", "domains", "rows", "blocks"):
            if state[key] != own[key]:
                raise UserError(
                    f"found a checkpoint whose data order has {key} {state[key]}, but this run "
                    f"has {own[key]}: give the data and settings it was made with, or a new run "
                    "directory"
                )
        self.plan = Plan.from_state(state["segments"])
        self.cursor = Cursor(
            int(state["sample"]), tuple(state["positions"]), tuple(state["deficit"])
        )
        self.used_up = False
        self._earlier.clear()
