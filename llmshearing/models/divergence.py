"""Divergences between two distributions over token ids, and where a teacher's comes from.

Shape legend: n tokens of a chunk, N tokens, C token ids that both models have, V token ids of a
teacher, d hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

PIECES = 16  # of a chunk, whose differences exist at the same time


class Comparison(NamedTuple):
    """A model's distributions next to a teacher's."""

    each: Tensor  # divergences times temperature^2, [n]
    # given the model's probabilities q [n, V] and the share w of the divergence in the loss, turns
    # q in place into (1 - w) q + w g, where g is the gradient of the divergence times temperature^2
    # with respect to the model's logits
    mix_: Callable[[Tensor, float], object]

    @classmethod
    def of_slope(cls, each: Tensor, slope: Tensor, temperature: float) -> "Comparison":
        """From divergences [n] and their slope [n, C] by the logits over the temperature."""

        def mix_(q: Tensor, share: float) -> object:
            return q.mul_(1 - share)[:, : slope.shape[1]].add_(slope, alpha=share * temperature)

        return cls(each * temperature**2, mix_)


class Teacher(Protocol):
    """A source of a teacher's distributions for the tokens of one forward pass.

    Both distributions are renormalised to the C token ids that both models have: padding of a
    vocabulary has probability 0.
    """

    vocabulary: int
    """Number of its token ids."""

    def compare(self, part: slice, logits: Tensor, beta: float, temperature: float) -> Comparison:
        """Compare a model with the teacher on some tokens.

        Args:
            part: tokens of the flattened microbatch.
            logits: of the model, [n, V], in at least float32.
            beta: which divergence, see `divergence_`.
            temperature: by which the logits of both models are divided.
        """
        ...

    def compare_logs(self, part: slice, logs: Tensor) -> Comparison:
        """The same for the forward KL divergence at temperature 1, from log q [n, V]."""
        ...


class Distillation(NamedTuple):
    """What a loss head needs to add a divergence to the cross entropy.

    The loss of a token is (1 - weight) CE + weight temperature^2 D. The square keeps the size of
    D's gradient, which falls with temperature^2 (Hinton et al. 2015).
    """

    teacher: Teacher  # the teacher's distributions for this microbatch
    weight: float  # of the divergence, from 0 to 1
    beta: float = 0.0  # which divergence, see `divergence_`
    temperature: float = 1.0  # by which the logits of both models are divided

    def shares(self, logits: Tensor) -> bool:
        """Whether the divergence needs the q of the cross entropy and nothing else of the model."""
        whole = logits.shape[1] <= self.teacher.vocabulary
        return self.beta == 0 and self.temperature == 1 and whole


@dataclass(frozen=True)
class LogitTransform:
    """What a family does to the outputs of its head: softcap * tanh(scale * output / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitTransform":
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

    def compare(self, part: slice, logits: Tensor, beta: float, temperature: float) -> Comparison:
        """See `Teacher`."""
        ids = min(logits.shape[1], self.vocabulary)
        student = log_softmax_(logits[:, :ids] / temperature)
        teacher = self.log_probabilities(part, ids, temperature).to(student.dtype)
        return Comparison.of_slope(*divergence_(teacher, student, beta), temperature)

    def compare_logs(self, part: slice, logs: Tensor) -> Comparison:
        """See `Teacher`. Few rows at a time, so that the difference takes little memory."""
        p = self.log_probabilities(part, logs.shape[1], 1.0)
        rows = -(-len(p) // PIECES)
        pairs = zip(p.split(rows), logs.split(rows), strict=True)
        each = torch.cat([(mine - its).mul_(mine.exp_()).sum(-1) for mine, its in pairs])
        return Comparison(each, lambda q, share: q.sub_(p, alpha=share))

    def log_probabilities(self, part: slice, ids: int, temperature: float) -> Tensor:
        """Log-probabilities of the first `ids` token ids for some tokens, renormalised to them.

        Returns:
            [n, ids] in at least float32.
        """
        bias = None if self.bias is None else self.bias[:ids]
        logits = F.linear(self.hidden[part].to(self.weight.dtype), self.weight[:ids], bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = self.transform.apply_(logits)
        return log_softmax_(logits if temperature == 1 else logits.div_(temperature))


def log_softmax_(logits: Tensor) -> Tensor:
    """In place: on a processor, another tensor of this size would cost more time than its values.

    Every kernel of torch reads a row before it writes it.
    """
    return torch.log_softmax(logits, -1, out=logits)


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
