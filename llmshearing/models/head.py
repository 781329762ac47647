"""An output head that computes losses instead of logits, a few tokens at a time.

The logits of a microbatch are the largest tensor of a training step: 16 rows of 4,096 tokens and a
vocabulary of 32,000 make 8 GiB in float32, and as much again for the gradient. Here logits and
their gradient exist for one chunk of tokens at a time. The gradient is computed in the forward pass
while the chunk's logits are in memory, so nothing is computed twice. The idea is that of Liger's
fused linear cross entropy (Hsu et al. 2024); this version is plain PyTorch and runs on any device.

Shape legend: N tokens, d hidden width, V vocabulary, B batch, T tokens of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from llmshearing.models.gated import GatedLinear, change_class
from llmshearing.models.metrics import IGNORED


class TokenLosses(NamedTuple):
    """Cross entropy of a microbatch.

    It is a tuple because FSDP2 looks for the tensors that need its backward hooks in tuples.

    Attributes:
        total: sum over all targets, a scalar with gradient.
        each: per token in nats, [B, T], without gradient; 0 at positions without a target.
    """

    total: Tensor
    each: Tensor


class LossHead(GatedLinear):
    """The output head of a causal model, which computes losses while `targets` is set.

    It has the parameters and state-dict keys of the stock head. The loss is computed within the
    model's own forward pass, so whatever shards, wraps or casts the parameters works here too.

    Attributes:
        targets: [B, T], `IGNORED` at positions without one; None to return logits.
        chunk: tokens whose logits exist at the same time; 0 for all.
    """

    targets: Tensor | None = None
    chunk: int = 0

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the parent's name
        """[B, T, d] to logits [B, T, V], or to `TokenLosses` while targets are set."""
        if self.targets is None:
            return super().forward(input)
        weight, bias = self.gated_parameters()
        losses: Any = _LinearCrossEntropy.apply(
            input.flatten(0, -2),
            weight,
            bias,
            self.targets.flatten(),
            self.chunk,
            torch.is_grad_enabled(),
        )
        total, each = losses
        return TokenLosses(total, each.view_as(self.targets))


def insert_loss_head(model: PreTrainedModel, chunk: int) -> LossHead:
    """Turn a model's output head into a `LossHead`, in place.

    Args:
        model: a stock Transformers model, gated or not.
        chunk: tokens whose logits exist at the same time; 0 for all.
    """
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    change_class(head, LossHead)
    assert isinstance(head, LossHead)
    head.chunk = chunk
    return head


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of a linear layer's outputs.

    The gradient with respect to the sum is a scalar, so all other factors of the gradients are
    known, and computed, in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """[N, d], [V, d], [V] or None, and [N] to the sum and the losses [N]."""
        device = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(compute)
            offset = None if bias is None else bias.to(compute)
            work = _Gradients.like(hidden, weight, bias) if with_gradient else None
            losses = []
            for first in range(0, len(hidden), chunk or len(hidden)):
                part = slice(first, first + (chunk or len(hidden)))
                losses.append(_chunk(hidden[part].to(compute), matrix, offset, targets, part, work))
        each = torch.cat(losses)
        ctx.mark_non_differentiable(each)
        ctx.work = work
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return each.sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, of_each: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients in place: a copy would add to the step's peak memory."""
        del of_each
        work, ctx.work = ctx.work, None
        if work is None:
            raise RuntimeError("backward ran twice on one loss; compute the loss again")
        scaled = [
            None if gradient is None else gradient.mul_(of_total).to(dtype)
            for gradient, dtype in zip(work, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _Gradients(NamedTuple):
    """Gradients of the sum with respect to the inputs; those that are accumulated are float32."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def like(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        wide = torch.promote_types(weight.dtype, torch.float32)
        return cls(
            torch.empty_like(hidden),
            torch.zeros_like(weight, dtype=wide),
            None if bias is None else torch.zeros_like(bias, dtype=wide),
        )


def _chunk(
    hidden: Tensor,
    matrix: Tensor,
    offset: Tensor | None,
    all_targets: Tensor,
    part: slice,
    work: _Gradients | None,
) -> Tensor:
    """Losses of a chunk of tokens; adds its part of the gradients to `work`."""
    targets = all_targets[part]
    logits = F.linear(hidden, matrix, offset)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counted = targets != IGNORED
    safe = targets.where(counted, 0)[:, None]
    normaliser = logits.logsumexp(-1, keepdim=True)
    losses = (normaliser - logits.gather(1, safe)).squeeze(1).where(counted, 0.0)
    if work is not None:
        wrong = logits.sub_(normaliser).exp_()  # probabilities, then minus 1 at the target
        wrong.scatter_add_(1, safe, wrong.new_full((), -1.0).expand_as(safe))
        wrong.masked_fill_(~counted[:, None], 0.0)
        narrow = wrong.to(matrix.dtype)
        work.hidden[part] = narrow @ matrix
        _add_product(work.weight, narrow, hidden)
        if work.bias is not None:
            work.bias.add_(wrong.sum(0))
    return losses


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to `total`, without a temporary if the dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total.add_(left.T @ right)
