"""The decision of dynamic batch loading: losses in, domain weights out, into the sampler's plan."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmshearing.errors import UserError
from llmshearing.mixture import policies, usage
from llmshearing.mixture.history import LossHistory, PlateauDetector
from llmshearing.mixture.policies import Vector
from llmshearing.mixture.sampler import Sampler
from llmshearing.mixture.settings import MixtureSettings, limits
from llmshearing.quantities import steps
from llmshearing.tables import Table


@dataclass(frozen=True)
class Update:
    """One update of the domain weights, each per domain [k]; losses in nats per token."""

    domains: Sequence[str]
    before: Vector  # weights until now
    after: Vector  # weights from now on
    losses: Vector  # the signal
    references: Vector | None  # to reach; None if weights are constant and no file gives any
    plateaued: Sequence[int]  # domains that stay above their reference and come no closer
    patience: int  # updates during which they did not

    def metrics(self) -> dict[str, float]:
        """What loggers get, by name."""
        kinds = {"weight": self.after, "loss": self.losses}
        if self.references is not None:
            kinds |= {"reference": self.references, "excess": self.losses - self.references}
        return usage.as_metrics({k: usage.by_domain(self.domains, v) for k, v in kinds.items()})

    def lines(self) -> Iterator[tuple[int, str]]:
        """Lines for the log, with their levels."""
        for i, name in enumerate(self.domains):
            line = f"domain {name}: weight {self.before[i]:.4f} -> {self.after[i]:.4f}, "
            line += f"loss {self.losses[i]:.4f}"
            if self.references is None:
                yield logging.INFO, line
                continue
            excess = self.losses[i] - self.references[i]
            yield logging.INFO, f"{line}, reference {self.references[i]:.4f}, excess {excess:+.4f}"
            if i in self.plateaued:
                yield (
                    logging.WARNING,
                    f"domain {name} stays {excess:.4f} above its reference, no closer than "
                    f"{self.patience} updates ago, at weight {self.after[i]:.4f}; a ceiling limits "
                    "what it takes from the others",
                )


class MixtureController:
    """Follows the losses of a run with its domain weights.

    The sampler's plan gets the new weights. `references` [k] is None if no file gives any. In all
    the run takes `total_samples`; `dro` without references aims at the losses that it extrapolates
    to there. `agree` makes the new weights the same on all ranks.
    """

    def __init__(
        self,
        settings: MixtureSettings,
        sampler: Sampler,
        start: Vector,
        references: Vector | None,
        *,
        total_samples: int,
        global_batch: int,
        row_tokens: int,
        agree: Callable[[Vector], Vector] = lambda weights: weights,
    ) -> None:
        self.policy, self.signal = settings.policy, settings.signal
        self.sampler, self.references = sampler, references
        self.domains = [source.name for source in sampler.sources]
        self.total_samples, self.row_tokens, self.agree = total_samples, row_tokens, agree
        self.read_ahead = settings.prefetch * global_batch  # samples
        self.weights, self.losses = np.asarray(start, np.float64), None
        self.limits = limits(settings, self.domains, self.weights)
        self.interval = steps(settings.update_interval)
        self.first = settings.first_update * self.interval
        self.updated = 0  # step of the last update
        self.history, self.plateaus = LossHistory(), PlateauDetector(settings.patience)

    def is_due(self, step: int) -> bool:
        """Whether an update belongs to this step and has not been made yet."""
        return step >= self.first and step % self.interval == 0 and step != self.updated

    def observe_held_out(self, step: int, sample: int, losses: Sequence[float]) -> None:
        """Take held-out losses [k] if they are the signal; a UserError if one is not finite."""
        for name, loss in zip(self.domains, losses, strict=True):
            if not np.isfinite(loss):
                raise UserError(
                    f"found held-out loss {loss} of domain {name} at step {step}, expected a "
                    "finite number: the model has diverged (lower the learning rate) or the domain "
                    "has no targets"
                )
        if self.signal == "held_out":
            self.observe(sample, np.array(losses))

    def observe(self, sample: int, losses: Vector) -> None:
        """Take the losses [k] after so many samples, in nats per token."""
        self.losses = losses
        if self.policy == "dro":
            self.history.add(sample, losses.tolist())

    def observe_sums(self, sample: int, totals: Vector, counts: Vector) -> bool:
        """Take summed training losses in nats [k] and their numbers of targets [k].

        A domain without targets keeps its last known loss. Returns whether the sums were used:
        False while nothing is known of a domain.
        """
        known = self.losses if self.losses is not None else self.references
        if known is None and not counts.all():
            return False
        means = totals / np.maximum(counts, 1)
        self.observe(sample, means if known is None else np.where(counts > 0, means, known))
        return True

    def update(self, step: int, sample: int) -> Update | None:
        """Move the weights after `sample` samples, from the first batch on that cannot be read yet.

        Returns what changed; None if no losses are known yet.
        """
        if self.losses is None:
            return None
        references, before = self.references, self.weights
        if references is None and self.policy == "dro":
            references = self.history.extrapolate(self.total_samples)
        if self.policy != "constant":
            assert references is not None, f"policy {self.policy} needs references"
            after = policies.update(self.policy, before, self.losses, references, self.limits)
            self.weights = self.agree(after)
            last = self.sampler.plan.segments[-1].first
            self.sampler.update(max(sample + self.read_ahead, last), self.weights)
        self.updated = step
        plateaued = []
        if self.references is not None:
            plateaued = self.plateaus.add((self.losses - self.references).tolist())
        patience = self.plateaus.patience
        return Update(
            self.domains, before, self.weights, self.losses, references, plateaued, patience
        )

    def expected_use(self, sample: int) -> Table:
        """The use of the data from `sample` to the run's end at the current weights."""
        left, used = max(0, self.total_samples - sample), self.sampler.cursor.positions
        uses = usage.expected_use(self.sampler.sources, self.weights, left, used)
        return usage.use_table(uses, self.row_tokens)

    def mixture(self, sample: int) -> dict[str, dict[str, float]]:
        """The current weights, and the use of the data before `sample`, by domain."""
        weights = usage.by_domain(self.domains, self.weights)
        return {"weights": weights} | usage.realised(self.sampler, sample, self.row_tokens)

    def running_metrics(self, sample: int, totals: Vector, counts: Vector) -> dict[str, float]:
        """What loggers get between updates, with mean losses as in `observe_sums`."""
        realised = usage.realised(self.sampler, sample, self.row_tokens)
        planned = usage.by_domain(self.domains, self.sampler.plan.shares(sample))
        sums = zip(self.domains, totals.tolist(), counts.tolist(), strict=True)
        losses = {name: total / count for name, total, count in sums if count}
        return usage.as_metrics(
            {
                "share": realised["shares"],
                "planned_share": planned,
                "tokens": realised["tokens"],
                "passes": realised["passes"],
                "train_loss": losses,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the plan and the position are in the sampler's state."""
        return {
            "weights": self.weights.tolist(),
            "losses": None if self.losses is None else self.losses.tolist(),
            "updated": self.updated,
            "history": self.history.state_dict(),
            "excess": self.plateaus.excess,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` gave."""
        self.weights = np.array(state["weights"])
        self.losses = None if state["losses"] is None else np.array(state["losses"])
        self.updated = state["updated"]
        self.history = LossHistory.from_state(state["history"])
        self.plateaus.excess = state["excess"]
