"""Where the masks of a run start, and what a one-shot cut of the same shape is worth there."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.callbacks.held_out import measure
from llmshearing.data.dataset import TrainRows, batched, read_rows, sample_rows
from llmshearing.export.oneshot import kept_units
from llmshearing.models.activation_importance import activation_importance
from llmshearing.models.gated import set_gates
from llmshearing.models.head import TokenLosses
from llmshearing.models.shearing import Batch, ShearingModel, unwrapped
from llmshearing.pruning.mask_report import times_the_steps
from llmshearing.pruning.scores import Scores, load_scores, save_scores
from llmshearing.pruning.selection import indicator

log = logging.getLogger(__name__)

IMPORTANCE_FILE = "importance.safetensors"


@dataclass(frozen=True)
class ImportancePlan:
    """Where the scores of the units come from."""

    file: str | None  # a file of scores, already read into `scores`
    scores: Scores | None  # of the file
    rows: int  # rows to measure them on, without a file; 0 to do without
    share: float  # what measuring them costs, as a fraction of the run's operations
    starts: bool  # whether the masks start by them; else they only serve the comparison
    reason: str  # why they do or do not, for the log


class MaskStart(Callback):
    """Before the first step: scores the units, starts the masks, and cuts to size for comparison.

    The scores are kept in the run directory, so a resumed run compares with the same ones. The
    masks' own start is in the checkpoint.

    A forward pass takes `batch` rows, the run has `total` steps, and `report` is called with the
    current activity.
    """

    def __init__(
        self,
        directory: Path,
        plan: ImportancePlan,
        rows: TrainRows,
        batch: int,
        total: int,
        report: Callable[[str], None],
    ) -> None:
        self.file, self.plan, self.rows, self.batch = directory / IMPORTANCE_FILE, plan, rows, batch
        self.total, self.report = total, report
        self.scores: Scores | None = None
        self.oneshot_loss: float | None = None  # of the source, cut at once

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the masks, unless the run resumes from a checkpoint."""
        masks = unwrapped(state.model).masks
        if masks is None:
            return
        if state.timestamp.batch.value > 0:
            self.scores = load_scores(self.file, masks.table) if self.file.is_file() else None
            return
        self.scores = self.plan.scores or (self._measure(state) if self.plan.rows else None)
        if dist.get_global_rank() == 0:
            self.file.unlink(missing_ok=True)  # of an earlier run without a checkpoint
            if self.scores is not None:
                about = {"rows": str(self.plan.rows), "file": self.plan.file or ""}
                save_scores(self.file, self.scores, about)
        log.info("masks start %s", self.plan.reason)
        if self.scores is not None:
            if self.plan.starts:
                masks.start_from(self.scores)
            if masks.target is not None:
                self.oneshot_loss = self.cut_loss(state, self.scores)
                log.info("held-out loss of the source cut at once: %.4f", self.oneshot_loss)
        if (times := times_the_steps(self.total)) > 1:
            log.warning(
                "masks have not been seen to beat a one-shot cut within %d steps: use llmshearing "
                "prune-oneshot, or %d times the steps",
                self.total,
                times,
            )

    def cut_loss(self, state: State, scores: Scores) -> float:
        """Held-out loss, mean over domains, of the current weights cut to the units of best score.

        In nats per token. All ranks call it together.
        """
        model = unwrapped(state.model)
        masks = model.masks
        assert masks is not None
        assert masks.target is not None
        table, kept = masks.table, kept_units(scores, masks.table, masks.target)
        gates = {a: indicator(scores[a].float(), units) for a, units in kept.items()}
        gates = {axis: state.device.tensor_to_device(gate) for axis, gate in gates.items()}

        def losses_of_cut(model: ShearingModel, batch: Batch) -> tuple[TokenLosses, torch.Tensor]:
            set_gates(model.sites, table, gates)
            return model.decoder_losses(batch)

        with torch.random.fork_rng(devices=[]):  # the loaders use the generator
            losses = measure(state, state.evaluators, losses_of_cut, self.report)
        return sum(losses.values()) / len(losses)

    def state_dict(self) -> dict[str, Any]:
        """What the mask report needs and the weights of a resumed run no longer tell."""
        return {"oneshot_loss": self.oneshot_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self.oneshot_loss = state["oneshot_loss"]

    def _measure(self, state: State) -> Scores:
        """The importance of all units of the source, each rank on rows of its own."""
        model = unwrapped(state.model)
        assert model.masks is not None
        data, ranks = self.rows, dist.get_world_size()
        # At least one row on every rank, also after the rounding within domains.
        chosen = sample_rows(data.domains, max(self.plan.rows, 2 * ranks))
        mine = chosen[dist.get_global_rank() :: ranks]
        passes = math.ceil(math.ceil(len(chosen) / ranks) / self.batch)

        def read(rows: Sequence[tuple[int, int]]) -> torch.Tensor:
            self.report("the importance of the units")
            ids, _ = read_rows(data.domains, rows, data.sequence_length, data.vocabulary)
            return state.device.tensor_to_device(ids)

        def run(ids: torch.Tensor) -> None:
            batch: Batch = {"input_ids": ids, "labels": ids}
            with get_precision_context(state.precision):
                model.decoder_losses(batch)

        set_gates(model.sites, model.masks.table, {})
        model.eval()
        batches = [*batched(mine, self.batch)]
        with torch.compiler.set_stance("force_eager"):  # compiled blocks would not see the hooks
            scores = activation_importance(
                model.model,
                model.masks.table,
                map(read, batches),
                run=run,
                padding=(read(mine[:1]) for _ in range(passes - len(batches))),
            )
        model.train()
        return scores
