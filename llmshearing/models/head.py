"""An output head that computes losses instead of logits, a few tokens at a time.

The logits of a microbatch are the largest tensor of a training step: 16 rows of 4,096 tokens and a
vocabulary of 32,000 make 8 GiB in float32, and as much again for the gradient. Here logits and
their gradient exist for one chunk of tokens at a time. The gradient is computed in the forward pass
while the chunk's logits are in memory, so nothing is computed twice. The idea is that of Liger's
fused linear cross entropy (Hsu et al. 2024); this version is plain PyTorch and runs on any device.
With a teacher, the divergence from it is computed in the same chunk, from the teacher's hidden
states and output weight, so the teacher's logits do not exist as a whole either.

Shape legend: N tokens, d hidden width, V vocabulary, B batch, T tokens of a row.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from llmshearing.models.blocks import decoder_of
from llmshearing.models.divergence import Distillation, LogitTransform, log_softmax_
from llmshearing.models.gated import GatedLinear, change_class
from llmshearing.models.metrics import IGNORED


class TokenLosses(NamedTuple):
    """Losses of a microbatch.

    It is a tuple because FSDP2 looks for the tensors that need its backward hooks in tuples. The
    losses per token are in nats, without gradient, and 0 at positions without a target.
    """

    # what is trained, summed over all targets: a scalar with gradient. The cross entropy, or its
    # mix with the divergence
    total: Tensor
    cross_entropy: Tensor  # per token, [B, T]
    # from the teacher per token, times temperature^2, [B, T]; None without a teacher
    divergence: Tensor | None


class LossHead(GatedLinear):
    """The output head of a causal model, which can also compute losses.

    It has the parameters and state-dict keys of the stock head.

    Attributes:
        chunk: tokens whose logits exist at the same time; 0 for all.
        transform: what the family does to this head's outputs.
    """

    chunk: int = 0
    transform: LogitTransform = LogitTransform()

    def losses(
        self, hidden: Tensor, targets: Tensor, distillation: Distillation | None = None
    ) -> TokenLosses:
        """The losses of a microbatch.

        Args:
            hidden: [B, T, d].
            targets: [B, T], `IGNORED` at positions without one.
            distillation: the teacher's part of the loss, if any.
        """
        weight, bias = self.gated_parameters()
        losses: Any = _LinearLoss.apply(
            hidden.flatten(0, -2),
            weight,
            bias,
            targets.flatten(),
            _Form(self.chunk, self.transform, distillation),
            torch.is_grad_enabled(),
        )
        total, cross_entropy, divergence = losses
        if divergence is not None:
            divergence = divergence.view_as(targets)
        return TokenLosses(total, cross_entropy.view_as(targets), divergence)


class _WithLosses:
    """Added to a stock model's class: given targets, the model returns losses instead of logits.

    The losses are computed within the model's own forward pass, so whatever shards, wraps or casts
    its parameters works here too.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        distillation: Distillation | None = None,
        **others: Any,
    ) -> Any:
        """[B, T] token ids to the stock output, or to `TokenLosses` with targets [B, T]."""
        if targets is None:
            return super().forward(input_ids, **others)  # pyright: ignore[reportAttributeAccessIssue]
        stock: Any = self
        hidden = decoder_of(stock)(input_ids=input_ids, use_cache=False).last_hidden_state
        return stock.get_output_embeddings().losses(hidden, targets, distillation)


def insert_loss_head(model: PreTrainedModel, chunk: int) -> None:
    """Let a model compute losses, in place: `model(tokens, targets=...)` is a `TokenLosses`.

    The logits of `chunk` tokens exist at the same time; 0 means of all.
    """
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    change_class(head, LossHead)
    assert isinstance(head, LossHead)
    head.chunk = chunk
    head.transform = LogitTransform.of(model.config)
    stock = type(model)
    if not issubclass(stock, _WithLosses):
        change_class(model, type(stock.__name__, (_WithLosses, stock), {}))


class _Form(NamedTuple):
    """How a loss is computed: see `LossHead`."""

    chunk: int
    transform: LogitTransform
    distillation: Distillation | None


class _Weights(NamedTuple):
    """Weight [V, d] and bias [V] of a head in the dtype of the computation."""

    matrix: Tensor
    offset: Tensor | None


class _LinearLoss(torch.autograd.Function):
    """The sum of the losses of a linear layer's outputs.

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
        form: _Form,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[N, d], [V, d], [V] or None, and [N] to the sum, cross entropies [N], divergences [N]."""
        device = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            head = _Weights(weight.to(compute), None if bias is None else bias.to(compute))
            work = _Gradients.like(hidden, weight, bias) if with_gradient else None
            size = form.chunk or len(hidden)
            parts = [slice(first, first + size) for first in range(0, len(hidden), size)]
            found = [_chunk(hidden[p].to(compute), head, targets[p], form, p, work) for p in parts]
        cross_entropy = torch.cat([one for one, _ in found])
        total, divergence = cross_entropy.sum(), None
        if form.distillation is not None:
            divergence = torch.cat([one for _, one in found if one is not None])
            share = form.distillation.weight
            total = (1 - share) * total + share * divergence.sum()
        per_token = [cross_entropy] if divergence is None else [cross_entropy, divergence]
        ctx.mark_non_differentiable(*per_token)  # a second call would replace the first
        ctx.work = work
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total, cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients in place: a copy would add to the step's peak memory."""
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
    def like(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> "_Gradients":
        wide = torch.promote_types(weight.dtype, torch.float32)
        return cls(
            torch.empty_like(hidden),
            torch.zeros_like(weight, dtype=wide),
            None if bias is None else torch.zeros_like(bias, dtype=wide),
        )


def _chunk(
    hidden: Tensor,
    head: _Weights,
    targets: Tensor,
    form: _Form,
    part: slice,
    work: _Gradients | None,
) -> tuple[Tensor, Tensor | None]:
    """Cross entropies and divergences of a chunk [n]; adds its part of the gradients to `work`."""
    logits = F.linear(hidden, *head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = form.transform.apply_(logits)
    counted = targets != IGNORED
    safe = targets.where(counted, 0)[:, None]
    of_logits = None if work is None else form.transform.slope(logits)
    compared, share = None, 0.0
    if (distillation := form.distillation) is not None:
        share = distillation.weight
    if distillation is not None and share and distillation.shares(logits):
        logs = log_softmax_(logits)
        compared = distillation.teacher.compare_logs(part, logs)
        losses = logs.gather(1, safe).neg_()
    else:  # with a share of 0 the loss is the same to the bit as without a teacher
        if distillation is not None:
            teacher, _, beta, temperature = distillation
            compared = teacher.compare(part, logits, beta, temperature)
        normaliser = logits.logsumexp(-1, keepdim=True)
        losses = normaliser - logits.gather(1, safe)
        logs = logits if work is None else logits.sub_(normaliser)
    losses = losses.squeeze(1).where(counted, 0.0)
    if work is not None:
        wrong = logs.exp_()  # probabilities, then minus 1 at the target
        if compared is not None:
            compared.mix_(wrong, share)
        wrong.scatter_add_(1, safe, wrong.new_full((), share - 1).expand_as(safe))
        wrong.masked_fill_(~counted[:, None], 0.0)
        if of_logits is not None:
            wrong.mul_(of_logits)
        narrow = wrong.to(head.matrix.dtype)
        work.hidden[part] = narrow @ head.matrix
        _add_product(work.weight, narrow, hidden)
        if work.bias is not None:
            work.bias.add_(wrong.sum(0))
    return losses, None if compared is None else compared.each.where(counted, 0.0)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to `total`, without a temporary if the dtypes agree."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    else:
        total.add_(left.T @ right)
