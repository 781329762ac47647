"""Dynamic batch loading: domain weights follow the losses during a run.

Metrics, per domain, to every logger: at each update `mixture/weight`, `mixture/loss` (the signal),
`mixture/reference` and `mixture/excess`; at each logged step `mixture/share` (realised),
`mixture/planned_share`, `mixture/tokens`, `mixture/passes` and `mixture/train_loss` (the mean since
the last logged step; not logged for a domain without targets).
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.held_out import at_end
from llmshearing.callbacks.non_finite import not_finite
from llmshearing.config import Recipe
from llmshearing.data.dataloaders import Loaders
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture.controller import MixtureController
from llmshearing.mixture.mixture_file import write_mixture
from llmshearing.models.shearing import unwrapped
from llmshearing.quantities import steps

log = logging.getLogger(__name__)


class DynamicLoading(Callback):
    """Gives the losses of a run to the mixture controller and logs its updates and what was read.

    An update takes effect `mixture.prefetch` batches later, with the first batch that no number of
    workers can have read already. It is made before the step's checkpoint is saved.
    """

    def __init__(
        self, recipe: Recipe, tree: DataTree, loaders: Loaders, references: np.ndarray | None
    ) -> None:
        self.global_batch, self.log_interval = recipe.data.global_batch, recipe.run.log_interval
        self.sampler = loaders.sampler
        self.file = Path(recipe.run.directory) / "mixture.yaml"
        self.controller = MixtureController(
            recipe.mixture,
            loaders.sampler,
            loaders.start,
            references,
            total_samples=steps(recipe.run.duration) * self.global_batch,
            global_batch=self.global_batch,
            row_tokens=tree.sequence_length,
            agree=_from_rank_0,
        )
        self.domains, self.trained = self.controller.domains, 0  # samples
        # Summed losses and numbers of targets, on the model's device, so that no step waits for it.
        self.since_update = torch.zeros(2, len(self.domains), dtype=torch.float64)
        self.since_log = torch.zeros_like(self.since_update)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start at the first sample that was not trained on, and log the expected use."""
        self.trained = state.timestamp.sample.value
        self.sampler.rewind(self.trained)
        table = self.controller.expected_use(self.trained)
        log.info("use of the data at the current weights\n%s", table)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Collect the training losses; stop at one that is not finite.

        The trainer has the loss on the host already, so reading it costs nothing. Usually the
        clipping stops first, at the gradient of such a loss.
        """
        if not all(math.isfinite(float(loss)) for loss in state.total_loss_dict.values()):
            raise not_finite(state, "loss", self.domains)
        self.trained = state.timestamp.sample.value
        sums = unwrapped(state.model).domain_loss.take()
        self.since_update = self.since_update.to(sums.device) + sums
        self.since_log = self.since_log.to(sums.device) + sums
        if state.timestamp.batch.value % steps(self.log_interval) == 0:
            losses = self.since_log.cpu().numpy()
            logger.log_metrics(self.controller.running_metrics(self.trained, *losses))
            self.since_log = torch.zeros_like(self.since_log)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Take the held-out losses; update if it is time."""
        losses = [float(state.eval_metrics[name]["loss"].compute()) for name in self.domains]
        self.controller.observe_held_out(state.timestamp.batch.value, self.trained, losses)
        self._update(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Update if it is time and this step has no evaluation; write the last mixture.

        This comes before the saver: a run with its last checkpoint has all its files.
        """
        self._update(state, logger)
        self.epoch_checkpoint(state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """End the run if the data is used up."""
        step = state.timestamp.batch.value
        if not self.sampler.used_up:
            return
        if step == 0:
            raise UserError(
                f"data: found too few rows for one batch of {self.global_batch} at the mixture's "
                "weights; prepare more, lower data.global_batch, or let domains be used again "
                "(mixture.used_up=repeat)"
            )
        log.warning("the data is used up: training stops at step %d", step)
        state.stop_training()

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write the last mixture at the end of a run, also of one whose data is used up."""
        if at_end(state):
            self._write()

    def mixture(self) -> dict[str, dict[str, float]]:
        """The current weights and what was realised up to the last trained sample, by domain."""
        return self.controller.mixture(self.trained)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers. The plan and the position are in the dataset's state."""
        sums = {"since_update": self.since_update, "since_log": self.since_log}
        return self.controller.state_dict() | {name: x.tolist() for name, x in sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.controller.load_state_dict(state)
        self.since_update = torch.tensor(state["since_update"], dtype=torch.float64)
        self.since_log = torch.tensor(state["since_log"], dtype=torch.float64)

    def _update(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if not self.controller.is_due(step):
            return
        if self.controller.signal == "train":
            sums = self.since_update.cpu().numpy()
            if self.controller.observe_sums(self.trained, *sums):
                self.since_update = torch.zeros_like(self.since_update)
        if (update := self.controller.update(step, self.trained)) is not None:
            for level, line in update.lines():
                log.log(level, "%s", line)
            logger.log_metrics(update.metrics())
            self._write()

    def _write(self) -> None:
        if dist.get_global_rank() == 0:
            write_mixture(self.file, self.mixture())


def _from_rank_0(weights: np.ndarray) -> np.ndarray:
    """One answer for all ranks, even if their machines round differently."""
    shared = [weights.tolist()]
    dist.broadcast_object_list(shared, src=0)
    return np.array(shared[0])
