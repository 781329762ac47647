"""From global sample numbers to rows: the one place that decides what a run reads next.

The answer depends on the seed, the plan and the domains, never on the world size, the workers or
the interruptions. Resuming at any sample needs only a cursor: a few numbers per domain.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.errors import UserError
from llmshearing.mixture.mixture_plan import DomainScheduler, MixturePlan, reweighted
from llmshearing.mixture.permutation import RowOrder

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class DomainSource:
    """The rows of a domain, and what happens once they are used up.

    `stop` ends the run, `drop` gives the domain's weight to the others.
    """

    name: str
    rows: int
    block: int  # rows that are stored together, e.g. in a shard
    passes: int | None = None  # how often the rows may be used; None for any number of times
    then: Literal["stop", "drop"] = "stop"

    @property
    def limit(self) -> float:
        """Samples that it has for a run."""
        return float("inf") if self.passes is None else self.passes * self.rows


@dataclass(frozen=True)
class Cursor:
    """Where a run is."""

    sample: int  # number of the next one
    positions: tuple[int, ...]  # samples taken so far, per domain
    deficit: tuple[int, ...]  # samples that each lacks in this segment; see `DomainScheduler`


@dataclass(frozen=True)
class Assignment:
    """Consecutive samples with their domains and their positions in them, [n] each."""

    sample: NDArray[np.int64]
    domain: NDArray[np.int64]
    position: NDArray[np.int64]

    def share(self, rank: int, world_size: int) -> "Assignment":
        """One rank's part of a global batch; the parts are consecutive."""
        size = len(self.sample) // world_size
        cut = slice(rank * size, (rank + 1) * size)
        return Assignment(self.sample[cut], self.domain[cut], self.position[cut])


class Sampler:
    """Takes samples in order.

    The order of the domains in `sources` is their numbering. The rows of `window` blocks are
    shuffled together; `rewind` can return to the last `memory` batches.
    """

    def __init__(
        self,
        sources: Sequence[DomainSource],
        plan: MixturePlan,
        seed: int,
        window: int = 8,
        memory: int = 64,
    ) -> None:
        self.sources, self.plan, self.seed, self.window = tuple(sources), plan, seed, window
        self.order = RowOrder.of([s.rows for s in sources], [s.block for s in sources], window)
        nothing = (0,) * len(sources)
        self.cursor = Cursor(0, nothing, nothing)
        self.used_up = False
        self._earlier: deque[Cursor] = deque(maxlen=memory)

    def take(self, count: int) -> Assignment | None:
        """The next `count` samples; None if a domain that ends the run is used up before them."""
        domains, places = np.empty(count, np.int64), np.empty(count, np.int64)
        cursor, done = self.cursor, 0
        while done < count and not self.used_up:
            cursor, taken = self._fill(cursor, domains[done:], places[done:])
            done += taken
        if self.used_up:
            return None
        self._earlier.append(self.cursor)
        first, self.cursor = self.cursor.sample, cursor
        return Assignment(np.arange(first, first + count), domains, places)

    def _fill(
        self, cursor: Cursor, domains: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[Cursor, int]:
        """Take samples until the arrays are full, a segment ends or a domain is used up."""
        number, segments = self.plan.at(cursor.sample), self.plan.segments
        count = len(domains)
        if number + 1 < len(segments):
            count = min(count, segments[number + 1].first - cursor.sample)
        weights = self.weights(cursor, number)
        if not any(weights):
            return self._stop(cursor, "every domain")
        positions, nothing = list(cursor.positions), (0,) * len(weights)
        fresh = cursor.sample == segments[number].first
        scheduler = DomainScheduler(weights, nothing if fresh else cursor.deficit)
        for done in range(count):
            domain = scheduler.pick()
            source, place = self.sources[domain], positions[domain]
            if place >= source.limit:
                return self._stop(cursor, f"domain {source.name}")
            domains[done], places[done], positions[domain] = domain, place, place + 1
            if place + 1 >= source.limit and source.then == "drop":
                log.info(
                    "domain %s is used up after %s passes: the others get its weight",
                    source.name,
                    source.passes,
                )
                return Cursor(cursor.sample + done + 1, tuple(positions), nothing), done + 1
        return Cursor(cursor.sample + count, tuple(positions), tuple(scheduler.deficit)), count

    def _stop(self, cursor: Cursor, what: str) -> tuple[Cursor, int]:
        log.info("%s is used up at sample %d: no further batch", what, cursor.sample)
        self.used_up = True
        return cursor, 0

    def weights(self, cursor: Cursor, segment: int | None = None) -> tuple[int, ...]:
        """The weights at a cursor, in multiples of 1 / SCALE; 0 for dropped domains."""
        number = self.plan.at(cursor.sample) if segment is None else segment
        available = [
            source.then != "drop" or position < source.limit
            for source, position in zip(self.sources, cursor.positions, strict=True)
        ]
        return reweighted(self.plan.segments[number].weights, available)

    def rows(self, assigned: Assignment) -> NDArray[np.int64]:
        """The rows of assigned samples within their domains, [n]."""
        return self.order.row(self.seed, assigned.domain, assigned.position)

    def update(self, first: int, weights: ArrayLike) -> None:
        """Change the weights from sample `first` on, which was not taken yet."""
        if first < self.cursor.sample:
            raise ValueError(f"sample {first} was taken already; next is {self.cursor.sample}")
        self.plan = self.plan.append(first, weights)

    def cursor_at(self, sample: int) -> Cursor:
        """Where the run was when `sample` was the next one; a recent batch must start there."""
        for cursor in (self.cursor, *reversed(self._earlier)):
            if cursor.sample == sample:
                return cursor
        raise ValueError(
            f"no batch starts at sample {sample}; the next sample is {self.cursor.sample}"
        )

    def rewind(self, sample: int) -> None:
        """Go back to a batch that was taken but not trained on."""
        self.cursor, self.used_up = self.cursor_at(sample), False
        while self._earlier and self._earlier[-1].sample >= sample:
            self._earlier.pop()

    def state_dict(self, sample: int | None = None) -> dict[str, Any]:
        """What is needed to resume at `sample`, by default the first one that was not taken."""
        cursor = self.cursor if sample is None else self.cursor_at(sample)
        return {
            "format": FORMAT,
            "seed": self.seed,
            "window": self.window,
            "domains": [source.name for source in self.sources],
            "rows": [source.rows for source in self.sources],
            "blocks": [source.block for source in self.sources],
            "sample": cursor.sample,
            "positions": list(cursor.positions),
            "deficit": list(cursor.deficit),
            "segments": self.plan.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state; a UserError if it is of other data or another seed."""
        own = self.state_dict()
        for key in ("format", "seed", "window", "domains", "rows", "blocks"):
            if state[key] != own[key]:
                raise UserError(
                    f"found a checkpoint whose data order has {key} {state[key]}, expected "
                    f"{own[key]} as in this run: give the data and settings it was made with, or a "
                    "new run.directory"
                )
        self.plan = MixturePlan.from_state(state["segments"])
        deficit = state["deficit" if "deficit" in state else "owed"]  # older checkpoints: owed
        self.cursor = Cursor(int(state["sample"]), tuple(state["positions"]), tuple(deficit))
        self.used_up = False
        self._earlier.clear()
