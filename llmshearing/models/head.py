"""The output head that gives losses in place of logits, a few tokens at a time.

Logits of a whole microbatch are the largest tensor of a training step (16 rows of 4,096 tokens over
32,000 words are 8 GiB in float32, and as much again for their gradient). Here they exist for one
chunk of tokens only, and so does their gradient, which is formed in the forward pass while the
chunk's logits are there: nothing is computed twice. The idea is that of Liger's fused linear cross
entropy (Hsu et al. 2024); this one is plain PyTorch and runs on any device.

Shape legend: N tokens, d hidden width, V vocabulary, B batch, T tokens of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from llmshearing.models.gated import GatedLinear, as_gated_linear
from llmshearing.models.metrics import IGNORED


class TokenLosses(NamedTuple):
    """Cross entropy of a microbatch.

    A tuple, because FSDP2 finds the tensors that need its backward hooks by walking tuples.

    Attributes:
        total: the sum over all targets, a scalar with gradient.
        each: per token in nats [B, T], without gradient; 0 where there is no target.
    """

    total: Tensor
    each: Tensor


class LossHead(GatedLinear):
    """A causal model's output head that knows the targets.

    It has the parameters and the state-dict keys of the stock head, and gives logits as that does
    until `targets` is set. As the loss is computed within the model's own forward, whatever shards,
    wraps or casts its parameters does so here too.

    Attributes:
        targets: [B, T], `IGNORED` where there is none; None gives logits.
        chunk: tokens whose logits exist at the same time; 0 for all.
    """

    targets: Tensor | None = None
    chunk: int = 0

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - the parent's name
        """[B, T, d] to logits [B, T, V], or to `TokenLosses` where targets are set."""
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
    """Swap a causal model's output head; its parameters stay the same objects.

    Args:
        model: a stock Transformers model, gated or not.
        chunk: tokens whose logits exist at the same time; 0 for all.
    """
    stock = model.get_output_embeddings()
    assert isinstance(stock, nn.Linear)
    head = as_gated_linear(stock, LossHead)
    head.chunk = chunk
    model.set_output_embeddings(head)
    return head


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of a linear layer's outputs, with its gradient formed on the way.

    The sum's gradient is a scalar, so that everything else can be computed before it is known.
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
        """[N, d], [V, d], [V] or None, [N] to the sum and the losses [N]."""
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
        """The stored gradients times the sum's, in place: a copy would stand at the step's peak."""
        del of_each
        work, ctx.work = ctx.work, None
        if work is None:
            raise RuntimeError("the loss's graph was used already; compute the loss again")
        scaled = [
            None if gradient is None else gradient.mul_(of_total).to(dtype)
            for gradient, dtype in zip(work, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _Gradients(NamedTuple):
    """Gradients of the sum with respect to the inputs, in float32 where they are summed up."""

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
    """Losses of some tokens; their part of the gradients is added to `work`."""
    targets = all_targets[part]
    logits = F.linear(hidden, matrix, offset)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counted = targets != IGNORED
    safe = targets.where(counted, 0)[:, None]
    normaliser = logits.logsumexp(-1, keepdim=True)
    losses = (normaliser - logits.gather(1, safe)).squeeze(1).where(counted, 0.0)
    if work is not None:
        wrong = logits.sub_(normaliser).exp_()  # probabilities, less one at the target
        wrong.scatter_add_(1, safe, wrong.new_full((), -1.0).expand_as(safe))
        wrong.masked_fill_(~counted[:, None], 0.0)
        narrow = wrong.to(matrix.dtype)
        work.hidden[part] = narrow @ matrix
        _add_product(work.weight, narrow, hidden)
        if work.bias is not None:
            work.bias.add_(wrong.sum(0))
    return losses


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right, without a copy where the types agree."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total.add_(left.T @ right)
