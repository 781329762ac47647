"""The decision of dynamic batch loading: losses in, domain weights out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmshearing.errors import UserError
from llmshearing.mixture import policies
from llmshearing.mixture.history import LossHistory, PlateauDetector
from llmshearing.mixture.policies import Vector
from llmshearing.mixture.settings import MixtureSettings, limits
from llmshearing.quantities import steps


@dataclass(frozen=True)
class Update:
    """One update of the domain weights, each per domain [k].

    Attributes:
        domains: names.
        before: weights until now.
        after: weights from now on.
        losses: the signal, in nats per token.
        references: losses to reach; None if the weights are constant and no file gives any.
        plateaued: numbers of the domains that stay above their reference and come no closer.
        patience: updates during which they did not.
    """

    domains: Sequence[str]
    before: Vector
    after: Vector
    losses: Vector
    references: Vector | None
    plateaued: Sequence[int]
    patience: int

    def metrics(self) -> dict[str, float]:
        """What loggers get, by name."""
        kinds = {"weight": self.after, "loss": self.losses}
        if self.references is not None:
            kinds |= {"reference": self.references, "excess": self.losses - self.references}
        return {
            f"mixture/{kind}/{name}": float(value)
            for kind, values in kinds.items()
            for name, value in zip(self.domains, values, strict=True)
        }

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

    Args:
        settings: the recipe's `mixture` section.
        domains: names, in the run's order.
        start: weights at the start [k].
        references: losses to reach [k]; None if no file gives any.
        total_samples: samples of the whole run. `dro` without references aims at the losses that
            it extrapolates to there.
        agree: makes the new weights the same on all ranks.
    """

    def __init__(
        self,
        settings: MixtureSettings,
        domains: Sequence[str],
        start: Vector,
        references: Vector | None,
        total_samples: int,
        agree: Callable[[Vector], Vector] = lambda weights: weights,
    ) -> None:
        self.policy, self.domains, self.references = settings.policy, list(domains), references
        self.total_samples, self.agree = total_samples, agree
        self.weights, self.losses = np.asarray(start, np.float64), None
        self.limits = limits(settings, domains, self.weights)
        self.interval = steps(settings.update_interval)
        self.first = settings.first_update * self.interval
        self.updated = 0  # step of the last update
        self.history, self.plateaus = LossHistory(), PlateauDetector(settings.patience)

    def is_due(self, step: int) -> bool:
        """Whether an update belongs to this step and has not been made yet."""
        return step >= self.first and step % self.interval == 0 and step != self.updated

    def observe(self, sample: int, losses: Vector) -> None:
        """Take the losses [k] after so many samples, in nats per token."""
        self.losses = losses
        if self.policy == "dro":
            self.history.add(sample, losses.tolist())

    def observe_sums(self, sample: int, totals: Vector, counts: Vector) -> bool:
        """Take mean training losses; a domain without targets keeps its last known loss.

        Args:
            sample: samples trained on.
            totals: summed losses in nats [k].
            counts: their numbers of targets [k].

        Returns:
            Whether they were used: False while nothing is known of a domain.
        """
        known = self.losses if self.losses is not None else self.references
        if known is None and not counts.all():
            return False
        means = totals / np.maximum(counts, 1)
        self.observe(sample, means if known is None else np.where(counts > 0, means, known))
        return True

    def update(self, step: int) -> Update | None:
        """Move the weights; None if no losses are known yet."""
        if self.losses is None:
            return None
        references, before = self.references, self.weights
        if references is None and self.policy == "dro":
            references = self.history.extrapolate(self.total_samples)
        if self.policy != "constant":
            assert references is not None, f"policy {self.policy} needs references"
            after = policies.update(self.policy, before, self.losses, references, self.limits)
            self.weights = self.agree(after)
        self.updated = step
        plateaued = []
        if self.references is not None:
            plateaued = self.plateaus.add((self.losses - self.references).tolist())
        return Update(
            self.domains,
            before,
            self.weights,
            self.losses,
            references,
            plateaued,
            self.plateaus.patience,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
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


def check_finite(losses: Sequence[float], domains: Sequence[str], step: int) -> None:
    """Refuse a held-out loss that is not finite.

    Raises:
        UserError: names the first such domain.
    """
    for name, loss in zip(domains, losses, strict=True):
        if not np.isfinite(loss):
            raise UserError(
                f"found held-out loss {loss} of domain {name} at step {step}, expected a finite "
                "number: the model has diverged (lower the learning rate) or the domain has no "
                "targets"
            )
