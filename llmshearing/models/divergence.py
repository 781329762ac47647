"""Divergences between two distributions over token ids, and where a teacher's comes from.

Shape legend: n tokens of a chunk, N tokens, C token ids that both models have, V token ids of a
teacher, d hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Teacher(Protocol):
    """A source of a teacher's distributions for the tokens of one forward pass."""

    vocabulary: int
    """Number of its token ids."""

    def log_probabilities(self, part: slice, ids: int, temperature: float) -> Tensor:
        """Log-probabilities of the first `ids` token ids for some tokens, renormalised to them.

        Args:
            part: tokens of the flattened microbatch.
            ids: number of token ids.
            temperature: by which logits are divided.

        Returns:
            [n, ids] in at least float32; minus infinity where the probability is 0.
        """
        ...


class Distillation(NamedTuple):
    """What a loss head needs to add a divergence to the cross entropy.

    The loss of a token is (1 - weight) CE + weight temperature^2 D. The square keeps the size of
    D's gradient, which falls with temperature^2 (Hinton et al. 2015).

    Attributes:
        teacher: the teacher's distributions for this microbatch.
        weight: of the divergence, from 0 to 1.
        beta: which divergence, see `divergence_`.
        temperature: by which the logits of both models are divided.
    """

    teacher: Teacher
    weight: float
    beta: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class LogitTransform:
    """What a family does to the outputs of its head: softcap * tanh(scale * output / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """From a Transformers config."""
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(scale / divisor, getattr(config, "final_logit_softcapping", None))  # Gemma

    def apply_(self, outputs: Tensor) -> Tensor:
        """Turn outputs of a head into logits, in place."""
        if self.scale != 1:
            outputs.mul_(self.scale)
        if self.softcap is not None:
            outputs.div_(self.softcap).tanh_().mul_(self.softcap)
        return outputs

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """The derivative of logits with respect to the head's outputs; None if they are equal."""
        if self.softcap is None:
            return None if self.scale == 1 else self.scale
        return (1 - (logits / self.softcap).square_()).mul_(self.scale)


class TeacherStates:
    """A teacher's distributions, from its last hidden states and its output head.

    A plain class: FSDP looks for tensors to cast in tuples and dataclasses.

    Args:
        hidden: [N, d].
        weight: [V, d].
        bias: [V] or None.
        transform: of its family.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        transform: LogitTransform | None = None,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.transform = transform or LogitTransform()
        self.vocabulary = len(weight)

    def log_probabilities(self, part: slice, ids: int, temperature: float) -> Tensor:
        """[n, ids]; see `Teacher`."""
        bias = None if self.bias is None else self.bias[:ids]
        logits = F.linear(self.hidden[part].to(self.weight.dtype), self.weight[:ids], bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.transform.apply_(logits).div_(temperature).log_softmax(-1)


def divergence_(teacher: Tensor, student: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The divergence of each token, and its gradient with respect to the student's logits.

    With teacher p, student q and m = beta p + (1 - beta) q:
    beta 0 is the forward KL(p || q), beta 1 the reverse KL(q || p), and in between the generalised
    Jensen-Shannon divergence beta KL(p || m) + (1 - beta) KL(q || m) of Agarwal et al. (2024). It
    goes to 0 as beta goes to 0 or 1; the two ends are its limits after division by beta or
    1 - beta.

    Args:
        teacher: log p, [n, C]; minus infinity where p is 0. Overwritten.
        student: log q, [n, C]. Overwritten.
        beta: from 0 to 1.

    Returns:
        Nats [n], and the gradient [n, C] with respect to the logits whose log-softmax is log q.
        Both are exactly 0 where p equals q.
    """
    gap = teacher - student
    p, q = teacher.exp_(), student.exp_()
    if beta == 0:
        gap.masked_fill_(p == 0, 0.0).mul_(p)
        return gap.sum(-1), q.sub_(p)
    if beta == 1:
        gap.neg_()
        each = (q * gap).sum(-1)
        return each, q.mul_(gap.sub_(each[:, None]))
    # log m - log q = log(1 + beta (e^gap - 1)), written so that no exponential overflows
    inner = torch.full_like(gap, beta).masked_fill_(gap > 0, 1 - beta)
    above = inner.mul_(gap.abs().neg_().expm1_()).log1p_().add_(gap.clamp(min=0))
    of_teacher = (gap - above).masked_fill_(p == 0, 0.0).mul_(p).sum(-1)
    of_student = (q * above).sum(-1)
    slope = q.mul_(of_student[:, None] - above).mul_(1 - beta)
    return beta * of_teacher - (1 - beta) * of_student, slope
