"""Sets the weight of the teacher's divergence before each step, and logs the divergence by domain.

Metrics at each logged step: `distillation/weight`, and per domain `distillation/divergence`, the
mean since the last logged step (not logged for a domain without targets).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger

from llmshearing.models.teacher import Distiller


class Distilling(Callback):
    """Passes the trainer's clock to the distiller, and logs every `interval` steps."""

    def __init__(
        self,
        distiller: Distiller,
        weight: Callable[[int], float],
        domains: Sequence[str],
        interval: int,
    ) -> None:
        self.distiller, self.weight = distiller, weight
        self.domains, self.interval = tuple(domains), interval
        self.since_log = torch.zeros(2, len(domains), dtype=torch.float64)  # sums and counts

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the weight of this step."""
        self.distiller.weight = self.weight(state.timestamp.batch.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Collect the divergences of all ranks, and log them if it is time."""
        sums = self.distiller.domain_divergence.take()
        self.since_log = self.since_log.to(sums.device) + sums
        if state.timestamp.batch.value % self.interval == 0:
            totals, counts = self.since_log.tolist()
            means = {
                f"distillation/divergence/{name}": total / count
                for name, total, count in zip(self.domains, totals, counts, strict=True)
                if count
            }
            logger.log_metrics({"distillation/weight": self.distiller.weight, **means})
            self.since_log = torch.zeros_like(self.since_log)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"since_log": self.since_log.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.since_log = torch.tensor(state["since_log"], dtype=torch.float64)
