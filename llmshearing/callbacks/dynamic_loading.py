"""Dynamic batch loading: domain weights follow the losses while a run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from composer.core import Callback, DataSpec, State
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import DataLoader

from llmshearing.data.dataloaders import (
    build_eval_loaders,
    build_train_loader,
    open_domains,
    train_rows,
)
from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError
from llmshearing.loading import policies, settings
from llmshearing.loading.mixture import write_mixture
from llmshearing.loading.plan import Plan
from llmshearing.loading.references import References
from llmshearing.loading.sampler import Sampler
from llmshearing.loading.settings import LoadingSettings

if TYPE_CHECKING:
    from llmshearing.config import Recipe

log = logging.getLogger(__name__)


class DynamicLoading(Callback):
    """Owns the loaders of a run, moves the domain weights by its policy and logs them.

    An update after batch b takes effect at batch b + `prefetch`, the first that no number of
    workers can have read already. Metrics, per domain: `loading/weight`, `loading/share`
    (realised), `loading/loss`, `loading/reference`, `loading/excess`.

    Args:
        loading: the recipe's section.
        sampler: of the run.
        train_loader: for the trainer.
        eval_loaders: for the trainer's evaluators, whose labels must be the domains' names.
        start: weights at the start [k].
        references: losses to reach [k], or None where the policy needs none.
        global_batch: rows of a batch over all ranks.
        directory: the run's; `mixture.yaml` is written there. None writes none.
    """

    def __init__(
        self,
        loading: LoadingSettings,
        sampler: Sampler,
        train_loader: DataSpec,
        eval_loaders: Mapping[str, DataLoader],
        *,
        start: np.ndarray,
        references: np.ndarray | None,
        global_batch: int,
        directory: Path | None = None,
    ) -> None:
        self.settings, self.sampler = loading, sampler
        self.train_loader, self.eval_loaders = train_loader, dict(eval_loaders)
        self.domains = [supply.name for supply in sampler.supplies]
        self.weights, self.references = np.asarray(start, np.float64), references
        self.limits = settings.limits(loading, self.domains, self.weights)
        self.interval = settings.interval(loading)
        self.global_batch, self.directory = global_batch, directory
        self.losses: np.ndarray | None = None
        self.updated = 0  # batch of the last update

    @classmethod
    def from_recipe(cls, recipe: Recipe, tree: DataTree) -> DynamicLoading:
        """The loaders and the callback of a checked recipe.

        Raises:
            UserError: the data, the references or the mixture file do not fit.
        """
        data, loading = recipe.data, recipe.loading
        sources = open_domains(tree, data.split)
        names = [rows.name for rows in sources]
        supplies = [settings.supply(loading, r.name, len(r), r.block) for r in sources]
        start = settings.starting_weights(loading, names, [len(rows) for rows in sources])
        sampler = Sampler(
            supplies,
            Plan.start(start),
            recipe.run.seed,
            window=loading.window,
            memory=loading.prefetch + 2,
        )
        rank, ranks = dist.get_global_rank(), dist.get_world_size()
        return cls(
            loading,
            sampler,
            build_train_loader(
                train_rows(sources, tree, sampler),
                global_batch=data.global_batch,
                workers=data.workers,
                prefetch=loading.prefetch,
                rank=rank,
                world_size=ranks,
            ),
            build_eval_loaders(
                tree,
                data.eval_split,
                names,
                batch=data.eval_batch,
                limit=data.eval_rows,
                rank=rank,
                world_size=ranks,
            ),
            start=start,
            references=read_references(loading, names, tree, data.eval_split),
            global_batch=data.global_batch,
            directory=Path(recipe.run.directory),
        )

    def fit_start(self, state: State, logger: Logger) -> None:
        """Begin at the first sample that was not trained on."""
        del logger
        self.sampler.rewind(state.timestamp.sample.value)

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
        self.losses = np.array(losses)
        self._update(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Update if it is time and no evaluation fell on this step; runs before the saver."""
        self._update(state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """The data is used up: the run ends here."""
        del logger
        if self.sampler.used_up:
            log.warning(
                "the data is used up: training stops at step %d", state.timestamp.batch.value
            )
            state.stop_training()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Leave the mixture for the next run."""
        del state, logger
        self._write()

    def mixture(self) -> dict[str, Any]:
        """The weights now and what was realised, by domain name."""
        cursor = self.sampler.cursor
        given = max(cursor.sample, 1)
        return {
            "weights": self._by_name(self.weights),
            "shares": self._by_name(np.array(cursor.positions) / given),
            "samples": dict(zip(self.domains, cursor.positions, strict=True)),
            "passes": {
                supply.name: position / supply.rows
                for supply, position in zip(self.sampler.supplies, cursor.positions, strict=True)
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the plan and the position are in the dataset's state."""
        return {
            "weights": self.weights.tolist(),
            "losses": None if self.losses is None else self.losses.tolist(),
            "updated": self.updated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.weights = np.array(state["weights"])
        self.losses = None if state["losses"] is None else np.array(state["losses"])
        self.updated = state["updated"]

    def _update(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        due = batch >= self.settings.first_update * self.interval and batch % self.interval == 0
        if not due or batch == self.updated or self.losses is None:
            return
        references = self.losses if self.references is None else self.references
        before = self.weights
        after = policies.update(self.settings.policy, before, self.losses, references, self.limits)
        shared = [after.tolist()]
        dist.broadcast_object_list(shared, src=0)
        self.weights, self.updated = np.array(shared[0]), batch
        first = state.timestamp.sample.value + self.settings.prefetch * self.global_batch
        if (self.weights != before).any():
            self.sampler.update(first, self.weights)
        self._log(logger, before, references)
        self._write()

    def _log(self, logger: Logger, before: np.ndarray, references: np.ndarray) -> None:
        assert self.losses is not None
        shares = self.mixture()["shares"]
        measured = {}
        for i, name in enumerate(self.domains):
            measured[f"loading/weight/{name}"] = self.weights[i]
            measured[f"loading/share/{name}"] = shares[name]
            measured[f"loading/loss/{name}"] = self.losses[i]
            if self.references is not None:
                measured[f"loading/reference/{name}"] = references[i]
                measured[f"loading/excess/{name}"] = self.losses[i] - references[i]
            log.info(
                "domain %s: weight %.4f -> %.4f, loss %.4f, reference %.4f, excess %+.4f",
                name,
                before[i],
                self.weights[i],
                self.losses[i],
                references[i],
                self.losses[i] - references[i],
            )
        logger.log_metrics(measured)

    def _write(self) -> None:
        if self.directory is not None and dist.get_global_rank() == 0:
            write_mixture(self.directory / "mixture.yaml", self.mixture())

    def _by_name(self, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.domains, values, strict=True)}


def read_references(
    loading: LoadingSettings, domains: Sequence[str], tree: DataTree, eval_split: str
) -> np.ndarray | None:
    """The losses to reach, in the domains' order.

    Raises:
        UserError: they do not belong to this data.
    """
    if not loading.references:
        return None
    found = References.read(loading.references)
    errors = found.errors(
        loading.references,
        domains,
        tree.tokenizer["fingerprint"],
        tree.sequence_length,
        {name: info.fingerprint for name, info in tree.split(eval_split).items()},
    )
    if errors:
        raise UserError("; ".join(errors))
    return np.array([found.losses[name] for name in domains])


def _held_out_loss(state: State, domain: str) -> float:
    value = state.eval_metrics[domain]["loss"].compute()
    return float(value if isinstance(value, torch.Tensor) else torch.as_tensor(value))
