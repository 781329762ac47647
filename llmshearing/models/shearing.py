"""The Composer model of both stages: a stock decoder, next to masks when pruning."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from llmshearing.models.blocks import decoder_blocks
from llmshearing.models.divergence import Distillation
from llmshearing.models.gated import GateSite, insert_gates, set_gates
from llmshearing.models.head import TokenLosses, insert_loss_head
from llmshearing.models.metrics import IGNORED, DomainSums, HeldOutLoss, shifted
from llmshearing.models.teacher import Distiller
from llmshearing.pruning.masks import MaskOutput, Masks

Batch = Mapping[str, Tensor]


class Outputs(NamedTuple):
    """The result of a forward pass."""

    losses: TokenLosses  # of the batch's targets
    counted: Tensor  # whether each position has a target, [B, T]
    drawn: MaskOutput | None  # the draw of the masks; None without masks


class ShearingModel(ComposerModel):
    """A causal decoder whose loss is cross entropy, or its mix with a divergence from a teacher.

    When pruning, the Lagrangian is added. Gated modules share the parameters and keys of the stock
    model. The logits of `loss_chunk` tokens exist at the same time; 0 means of all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        masks: Masks | None,
        domains: int,
        loss_chunk: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.masks = masks
        insert_loss_head(model, loss_chunk)
        self.sites: list[GateSite] = insert_gates(model, masks.table) if masks is not None else []
        self.domain_loss = DomainSums(domains)
        self.held_out = HeldOutLoss()
        self.last_draw: MaskOutput | None = None  # without its graph, for the log
        self.distiller: Distiller | None = None  # the teacher's part of the loss in training
        kinds = {type(block) for block in decoder_blocks(model)}
        hooks: Any = model  # Composer shards and recomputes the modules for which these return True
        hooks.fsdp_wrap_fn = lambda module: type(module) in kinds
        hooks.activation_checkpointing_fn = lambda module: type(module) in kinds

    def forward(self, batch: Batch) -> Outputs:
        """Draw the gates once, outside the blocks, and run the stock model."""
        drawn, distillation = None, None
        if self.distiller is not None and self.training:
            distillation = self.distiller.on(batch)
        if self.masks is not None:
            with torch.autocast(device_type=batch["input_ids"].device.type, enabled=False):
                drawn = self.masks()
            set_gates(self.sites, self.masks.table, drawn.gates)
            self.last_draw = drawn.detached()
        return Outputs(*self.decoder_losses(batch, distillation), drawn)

    def decoder_losses(
        self, batch: Batch, distillation: Distillation | None = None
    ) -> tuple[TokenLosses, Tensor]:
        """The losses with the current gates, and whether each position has a target, [B, T]."""
        targets = shifted(batch["labels"])
        losses = self.model(batch["input_ids"], targets=targets, distillation=distillation)
        return losses, targets != IGNORED

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Means over the microbatch's targets, the penalty, and what is trained, `total`."""
        losses, counted, drawn = outputs
        self.domain_loss.add(losses.cross_entropy, counted, batch["domain"])
        count = counted.sum().clamp(min=1)
        trained = losses.total / count
        parts = {"ce": trained}
        if self.distiller is not None and losses.divergence is not None:
            self.distiller.domain_divergence.add(losses.divergence, counted, batch["domain"])
            parts = {
                "ce": losses.cross_entropy.sum() / count,
                "divergence": losses.divergence.sum() / count,
            }
        if drawn is None:
            return {**parts, "total": trained.clone()}
        return {**parts, "lagrangian": drawn.penalty, "total": trained + drawn.penalty}

    def eval_forward(self, batch: Batch, outputs: Any = None) -> Outputs:
        """The model without noise, cut to the current size."""
        return outputs if outputs is not None else self.forward(batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """The held-out loss; Composer reports it for each evaluator, so for each domain."""
        return {} if is_train else {"loss": self.held_out}

    def update_metric(self, batch: Batch, outputs: Outputs, metric: Metric) -> None:
        """Add a batch to the held-out loss."""
        del batch
        metric.update(outputs.losses.cross_entropy, outputs.counted)


def unwrapped(model: nn.Module) -> ShearingModel:
    """The model of a trainer's state, without DDP's wrapper."""
    inner = model.module if hasattr(model, "module") else model
    assert isinstance(inner, ShearingModel)
    return inner
