"""Dynamic batch loading: domain weights follow the losses while a run goes on.

Metrics, per domain, to every logger: at each update `mixture/weight`, `mixture/loss` (the signal),
`mixture/reference` and `mixture/excess`; at each logged step `mixture/share` (realised),
`mixture/planned_share`, `mixture/tokens`, `mixture/passes` and `mixture/train_loss` (the mean since
the last logged step; not logged for a domain that was absent).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import DataLoader

from llmshearing.callbacks.held_out import at_end
from llmshearing.callbacks.non_finite import not_finite
from llmshearing.data.dataloaders import (
    build_eval_loaders,
    build_train_loader,
    remote_folders,
    train_rows,
)
from llmshearing.data.domains import data_facts, open_domains
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.mixture import policies, settings, usage
from llmshearing.mixture.history import LossHistory, PlateauDetector
from llmshearing.mixture.inputs import read_references
from llmshearing.mixture.mixture_file import write_mixture
from llmshearing.mixture.mixture_plan import Plan
from llmshearing.mixture.sampler import Sampler
from llmshearing.mixture.settings import MixtureSettings
from llmshearing.quantities import steps

if TYPE_CHECKING:
    from llmshearing.config import Recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunGeometry:
    """What a run is, as far as its data goes.

    Attributes:
        global_batch: rows of a batch over all ranks.
        batches: optimizer steps of the whole run.
        log_interval: steps between logged ones.
        sequence_length: tokens in a row.
        directory: of the run; `mixture.yaml` is written there. None writes none.
    """

    global_batch: int
    batches: int
    log_interval: int
    sequence_length: int
    directory: Path | None = None


class DynamicLoading(Callback):
    """Owns the loaders of a run, moves the domain weights by its policy and logs them.

    An update after batch b takes effect at batch b + `prefetch`, the first that no number of
    workers can have read already. An update is made before the step's checkpoint is saved.

    Args:
        mixture: the recipe's section.
        sampler: of the run.
        train_loader: for the trainer.
        eval_loaders: for the trainer's evaluators, whose labels must be the domains' names.
        start: weights at the start [k].
        references: losses to reach [k]; None where the policy needs none, or for `dro`, which then
            takes the losses that it foresees for the end of the run.
        geometry: of the run.
    """

    def __init__(
        self,
        mixture: MixtureSettings,
        sampler: Sampler,
        train_loader: DataSpec,
        eval_loaders: Mapping[str, DataLoader],
        *,
        start: np.ndarray,
        references: np.ndarray | None,
        geometry: RunGeometry,
    ) -> None:
        self.settings, self.sampler, self.geometry = mixture, sampler, geometry
        self.train_loader, self.eval_loaders = train_loader, dict(eval_loaders)
        self.domains = [supply.name for supply in sampler.supplies]
        self.weights, self.references = np.asarray(start, np.float64), references
        self.limits = settings.limits(mixture, self.domains, self.weights)
        self.interval = steps(mixture.update_interval)
        self.losses: np.ndarray | None = None
        self.updated, self.trained = 0, 0  # batch of the last update, samples trained on
        self.history, self.stalls = LossHistory(), PlateauDetector(mixture.patience)
        self.since_update = torch.zeros(2, len(self.domains), dtype=torch.float64)
        self.since_log = torch.zeros_like(self.since_update)

    @classmethod
    def from_recipe(cls, recipe: Recipe, tree: DataTree) -> DynamicLoading:
        """The loaders and the callback of a checked recipe.

        Raises:
            UserError: the data, the references or the mixture file do not fit.
        """
        data, mixture, run = recipe.data, recipe.mixture, recipe.run
        remotes = remote_folders(tree, data.split, data.remote)
        sources = open_domains(tree, data.split, remotes, by_hash=data.verify == "hash")
        names = [rows.name for rows in sources]
        supplies = [settings.supply(mixture, r.name, len(r), r.block) for r in sources]
        start = settings.starting_weights(mixture, names, [len(rows) for rows in sources])
        sampler = Sampler(
            supplies,
            Plan.start(start),
            run.seed,
            window=mixture.window,
            memory=mixture.prefetch + 2,
        )
        ranks = {"rank": dist.get_global_rank(), "world_size": dist.get_world_size()}
        return cls(
            mixture,
            sampler,
            build_train_loader(
                train_rows(sources, tree, sampler),
                global_batch=data.global_batch,
                workers=data.workers,
                prefetch=mixture.prefetch,
                **ranks,
            ),
            build_eval_loaders(
                tree,
                data.eval_split,
                names,
                batch=data.eval_batch,
                limit=data.eval_rows,
                remotes=remote_folders(tree, data.eval_split, data.remote),
                by_hash=data.verify == "hash",
                **ranks,
            ),
            start=start,
            references=read_references(mixture, data_facts(tree, data.split, data.eval_split)),
            geometry=RunGeometry(
                global_batch=data.global_batch,
                batches=steps(run.duration),
                log_interval=steps(run.log_interval),
                sequence_length=tree.sequence_length,
                directory=Path(run.directory),
            ),
        )

    def fit_start(self, state: State, logger: Logger) -> None:
        """Begin at the first sample that was not trained on, and tell what will be used."""
        del logger
        self.trained = state.timestamp.sample.value
        self.sampler.rewind(self.trained)
        to_come = max(0, self.geometry.batches * self.geometry.global_batch - self.trained)
        used = self.sampler.cursor.positions
        uses = usage.expected_use(self.sampler.supplies, self.weights, to_come, used)
        log.info(
            "use of the data at the weights of now\n%s",
            usage.table(uses, self.geometry.sequence_length),
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Collect the training losses; stop at one that is not finite.

        The trainer has the loss on the host already, so that looking at it costs nothing. A loss
        that is not finite has such a gradient as well, which the clipping refuses first.
        """
        losses = getattr(state, "total_loss_dict", None) or {}
        if not all(math.isfinite(float(loss)) for loss in losses.values()):
            raise not_finite(state, "loss", self.domains)
        self.trained = state.timestamp.sample.value
        model = state.model.module if hasattr(state.model, "module") else state.model
        metric = getattr(model, "domain_loss", None)
        sums = None
        if metric is not None:
            sums = torch.stack([metric.totals, metric.counts]).double()
            dist.all_reduce(sums, reduce_operation="SUM")
            metric.reset()
            self.since_update = self.since_update.to(sums.device) + sums
            self.since_log = self.since_log.to(sums.device) + sums
        if state.timestamp.batch.value % self.geometry.log_interval == 0:
            logger.log_metrics(self._running_metrics())
            self.since_log = torch.zeros_like(self.since_log)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Keep the held-out losses; update if it is time."""
        losses = [_held_out_loss(state, name) for name in self.domains]
        for name, loss in zip(self.domains, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"found held-out loss {loss} of domain {name} at step "
                    f"{state.timestamp.batch.value}, expected a finite number: the model has "
                    "diverged (lower the learning rate) or the domain has no targets"
                )
        if self.settings.signal == "held_out":
            self._keep(np.array(losses))
        self._update(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Update if it is time and no evaluation fell on this step; leave the last mixture.

        Runs before the saver: a run whose last checkpoint is whole has left all there is.
        """
        self._update(state, logger)
        if at_end(state):
            self._write()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """The data is used up: the run ends here."""
        del logger
        batch = state.timestamp.batch.value
        if not self.sampler.used_up:
            return
        if batch == 0:
            raise UserError(
                f"data: found too few rows for one batch of {self.geometry.global_batch} at the "
                "mixture's weights; prepare more, lower data.global_batch, or let domains be used "
                "again (mixture.used_up=repeat)"
            )
        log.warning("the data is used up: training stops at step %d", batch)
        state.stop_training()

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Leave the last mixture where the data is used up."""
        del logger
        if at_end(state):
            self._write()

    def mixture(self) -> dict[str, Any]:
        """The weights now and what was realised, by domain name, up to the last trained sample."""
        cursor = self.sampler.cursor_at(self.trained)
        used = np.array(cursor.positions)
        rows = np.array([supply.rows for supply in self.sampler.supplies])
        return {
            "weights": self._by_name(self.weights),
            "shares": self._by_name(used / max(cursor.sample, 1)),
            "tokens": {
                name: count * self.geometry.sequence_length
                for name, count in zip(self.domains, cursor.positions, strict=True)
            },
            "passes": self._by_name(used / rows),
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the plan and the position are in the dataset's state."""
        return {
            "weights": self.weights.tolist(),
            "losses": None if self.losses is None else self.losses.tolist(),
            "updated": self.updated,
            "since_update": self.since_update.tolist(),
            "since_log": self.since_log.tolist(),
            "history": self.history.state_dict(),
            "excess": self.stalls.excess,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.weights = np.array(state["weights"])
        self.losses = None if state["losses"] is None else np.array(state["losses"])
        self.updated = state["updated"]
        self.since_update = torch.tensor(state["since_update"], dtype=torch.float64)
        self.since_log = torch.tensor(state["since_log"], dtype=torch.float64)
        self.history = LossHistory.from_state(state["history"])
        self.stalls.excess = state["excess"]

    def _update(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        due = batch >= self.settings.first_update * self.interval and batch % self.interval == 0
        if not due or batch == self.updated:
            return
        if self.settings.signal == "train":
            self._keep_train_losses()
        if self.losses is None:
            return
        references = self._references()
        before, after = self.weights, self.weights
        if self.settings.policy != "constant":
            after = policies.update(
                self.settings.policy, before, self.losses, references, self.limits
            )
            shared = [after.tolist()]
            dist.broadcast_object_list(shared, src=0)  # one answer, whatever the machines
            after = np.array(shared[0])
            first = self.trained + self.settings.prefetch * self.geometry.global_batch
            self.sampler.update(max(first, self.sampler.plan.segments[-1].first), after)
        self.weights, self.updated = after, batch
        self._log(logger, before, references)
        self._warn_of_stalls(references)
        self._write()

    def _references(self) -> np.ndarray:
        """The losses to reach; without any, those of now, so that there is no excess."""
        assert self.losses is not None
        if self.references is not None:
            return self.references
        if self.settings.policy == "dro":
            return self.history.extrapolate(self.geometry.batches * self.geometry.global_batch)
        return self.losses

    def _keep(self, losses: np.ndarray) -> None:
        self.losses = losses
        if self.settings.policy == "dro":
            self.history.add(self.trained, losses.tolist())

    def _keep_train_losses(self) -> None:
        """Mean training losses since the last update; an absent domain keeps what was known."""
        totals, counts = self.since_update.cpu().numpy()
        known = self.losses if self.losses is not None else self.references
        if known is None and not counts.all():
            return  # nothing is known of a domain yet: go on collecting
        known = totals if known is None else known
        self.since_update = torch.zeros_like(self.since_update)
        self._keep(np.where(counts > 0, totals / np.maximum(counts, 1), known))

    def _running_metrics(self) -> dict[str, float]:
        mixture = self.mixture()
        planned = self.sampler.plan.shares(self.trained)
        totals, counts = self.since_log.cpu().numpy()
        measured = {}
        for i, name in enumerate(self.domains):
            measured[f"mixture/share/{name}"] = mixture["shares"][name]
            measured[f"mixture/planned_share/{name}"] = float(planned[i])
            measured[f"mixture/tokens/{name}"] = mixture["tokens"][name]
            measured[f"mixture/passes/{name}"] = mixture["passes"][name]
            if counts[i]:
                measured[f"mixture/train_loss/{name}"] = float(totals[i] / counts[i])
        return measured

    def _log(self, logger: Logger, before: np.ndarray, references: np.ndarray) -> None:
        assert self.losses is not None
        measured = {}
        for i, name in enumerate(self.domains):
            loss, reference = self.losses[i], references[i]
            measured[f"mixture/weight/{name}"] = self.weights[i]
            measured[f"mixture/loss/{name}"] = loss
            line = (
                f"domain {name}: weight {before[i]:.4f} -> {self.weights[i]:.4f}, loss {loss:.4f}"
            )
            if references is not self.losses:
                measured[f"mixture/reference/{name}"] = reference
                measured[f"mixture/excess/{name}"] = loss - reference
                line += f", reference {reference:.4f}, excess {loss - reference:+.4f}"
            log.info("%s", line)
        logger.log_metrics(measured)

    def _warn_of_stalls(self, references: np.ndarray) -> None:
        assert self.losses is not None
        if self.references is None:
            return
        for i in self.stalls.add((self.losses - references).tolist()):
            log.warning(
                "domain %s: its loss is %.4f above the reference and has not come nearer in %d "
                "updates, at weight %.4f; a ceiling bounds what it takes from the others",
                self.domains[i],
                self.losses[i] - references[i],
                self.settings.patience,
                self.weights[i],
            )

    def _write(self) -> None:
        if self.geometry.directory is not None and dist.get_global_rank() == 0:
            write_mixture(self.geometry.directory / "mixture.yaml", self.mixture())

    def _by_name(self, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.domains, values, strict=True)}


def _held_out_loss(state: State, domain: str) -> float:
    value = state.eval_metrics[domain]["loss"].compute()
    return float(value if isinstance(value, torch.Tensor) else torch.as_tensor(value))
