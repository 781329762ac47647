"""The Composer model of both stages: a stock decoder, with masks beside it while pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from llmshearing.architecture.families import family_of
from llmshearing.models.gated import GateSite, insert_gates, set_gates
from llmshearing.models.head import TokenLosses, insert_loss_head
from llmshearing.models.metrics import IGNORED, DomainLoss, HeldOutLoss, shifted
from llmshearing.pruning.masks import MaskOutput, Masks

Batch = Mapping[str, Tensor]


class Outputs(NamedTuple):
    """What a forward pass gives.

    Attributes:
        losses: of the batch's targets.
        counted: where there is a target [B, T].
        drawn: the masks' draw; None without masks.
    """

    losses: TokenLosses
    counted: Tensor
    drawn: MaskOutput | None


class ShearingModel(ComposerModel):
    """A causal decoder whose loss is cross entropy, plus the Lagrangian while pruning.

    Args:
        model: the stock Transformers model.
        masks: the learned masks, or None in continued pre-training.
        domains: of the data.
        loss_chunk: tokens whose logits exist at the same time; 0 for all.

    Attributes:
        model: the stock Transformers model; gated modules share its parameters and keys.
        masks: the learned masks, or None in continued pre-training.
        domain_loss: training loss per domain since its last reset.
        last_draw: the masks' last draw without its graph, for logging.
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
        self.domain_loss = DomainLoss(domains)
        self.held_out = HeldOutLoss()
        self.last_draw: MaskOutput | None = None
        kinds = {type(block) for block in _decoder_blocks(model)}
        # Composer reads these two to place sharding and activation checkpointing.
        hooks: Any = model
        hooks.fsdp_wrap_fn = lambda module: type(module) in kinds
        hooks.activation_checkpointing_fn = lambda module: type(module) in kinds

    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks."""
        return _decoder_blocks(self.model)

    def forward(self, batch: Batch) -> Outputs:
        """Draw the gates once, outside the blocks, and run the stock model."""
        drawn = None
        if self.masks is not None:
            with torch.autocast(device_type=batch["input_ids"].device.type, enabled=False):
                drawn = self.masks()
            set_gates(self.sites, self.masks.table, drawn.gates)
            self.last_draw = drawn.detached()
        return Outputs(*self.decoder_losses(batch), drawn)

    def decoder_losses(self, batch: Batch) -> tuple[TokenLosses, Tensor]:
        """The decoder's losses with the gates that it has, and where there is a target [B, T]."""
        head: Any = self.model.get_output_embeddings()
        head.targets = targets = shifted(batch["labels"])
        try:
            losses = self.model(input_ids=batch["input_ids"], use_cache=False).logits
        finally:
            head.targets = None
        return losses, targets != IGNORED

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Mean cross entropy over the microbatch's targets, and the penalty: {ce, ..., total}."""
        losses, counted, drawn = outputs
        if self.domain_loss.device != counted.device:  # FSDP moves parameters only
            self.domain_loss.to(counted.device)
        self.domain_loss.update(losses.each, counted, batch["domain"])
        cross_entropy = losses.total / counted.sum().clamp(min=1)
        if drawn is None:
            return {"ce": cross_entropy, "total": cross_entropy.clone()}
        return {
            "ce": cross_entropy,
            "lagrangian": drawn.penalty,
            "total": cross_entropy + drawn.penalty,
        }

    def eval_forward(self, batch: Batch, outputs: Any = None) -> Outputs:
        """The deterministic model, cut to the current size."""
        return outputs if outputs is not None else self.forward(batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """`loss`, reported once per evaluator, which is to say per domain."""
        return {} if is_train else {"loss": self.held_out}

    def update_metric(self, batch: Batch, outputs: Outputs, metric: Metric) -> None:
        """Add a batch to the held-out loss."""
        del batch
        metric.update(outputs.losses.each, outputs.counted)


def unwrapped(model: nn.Module) -> ShearingModel:
    """The model that a trainer's state holds, out of DDP's wrapper where there is one."""
    inner = model.module if hasattr(model, "module") else model
    assert isinstance(inner, ShearingModel)
    return inner


def _decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks, which the model's family names."""
    blocks = model.get_submodule(family_of({"model_type": model.config.model_type}).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks
