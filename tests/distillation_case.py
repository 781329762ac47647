"""A distilled loss of random hidden states and heads, and the plain one that it has to equal.

The reference builds every tensor that the loss head avoids, in float64 and with autograd alone.
"""

import torch
import torch.nn.functional as F

from llmshearing.models.divergence import Distillation, LogitTransform, TeacherStates
from llmshearing.models.head import LossHead
from llmshearing.models.metrics import IGNORED


def reference(student, teacher, targets, beta, temperature, weight):
    """Sum over the targets of (1 - w) CE + w T^2 D, CE and D alone; from logits [N, V], [N, W]."""
    kept = targets != IGNORED
    student, teacher, targets = student[kept].double(), teacher[kept].double(), targets[kept]
    cross_entropy = F.cross_entropy(student, targets, reduction="sum")
    common = min(student.shape[1], teacher.shape[1])
    q = torch.softmax(student[:, :common] / temperature, -1)
    p = torch.softmax(teacher[:, :common] / temperature, -1)
    if beta == 0:
        distance = (p * (p / q).log()).sum()
    elif beta == 1:
        distance = (q * (q / p).log()).sum()
    else:
        m = beta * p + (1 - beta) * q
        distance = beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()
    distance = temperature**2 * distance
    return (1 - weight) * cross_entropy + weight * distance, cross_entropy, distance


def transformed(outputs, transform):
    scaled = outputs * transform.scale
    cap = transform.softcap
    return scaled if cap is None else cap * torch.tanh(scaled / cap)


class Case:
    """Random hidden states and heads of a student of width 6 and a teacher of width 8."""

    def __init__(self, dtype, *, student_ids=11, teacher_ids=11, bias=True, rows=(2, 5)):
        generator = torch.Generator().manual_seed(5)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden = random(*rows, 6).requires_grad_()
        self.gate = torch.rand(6, generator=generator, dtype=torch.float64).to(dtype)
        self.gate.requires_grad_()
        self.head = LossHead(6, student_ids, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(random(*parameter.shape))
        self.teacher_hidden = random(*rows, 8)
        self.teacher_weight = random(teacher_ids, 8)
        self.teacher_bias = random(teacher_ids) if bias else None
        smallest = min(student_ids, teacher_ids)
        self.targets = torch.randint(0, smallest, rows, generator=generator)
        self.targets[0, 1] = self.targets[-1, -1] = IGNORED
        self.student_transform = self.teacher_transform = LogitTransform()

    @property
    def leaves(self):
        return [self.hidden, self.gate, *self.head.parameters()]

    def found(self, chunk, beta, temperature, weight):
        """Losses of the head."""
        teacher = TeacherStates(
            self.teacher_hidden.flatten(0, 1),
            self.teacher_weight,
            self.teacher_bias,
            self.teacher_transform,
        )
        self.head.in_gate, self.head.chunk = self.gate, chunk
        self.head.transform = self.student_transform
        return self.head.losses(
            self.hidden, self.targets, Distillation(teacher, weight, beta, temperature)
        )

    def expected(self, beta, temperature, weight):
        self.head.in_gate = self.gate
        student = transformed(self.head(self.hidden), self.student_transform)
        outputs = F.linear(self.teacher_hidden, self.teacher_weight, self.teacher_bias)
        teacher = transformed(outputs, self.teacher_transform)
        flat = student.flatten(0, 1), teacher.flatten(0, 1), self.targets.flatten()
        return reference(*flat, beta, temperature, weight)

    def check(self, close, chunk, beta, temperature, weight):
        """Compare the losses, and the gradients of 0.37 times the total, to `close` relatively."""
        found = self.found(chunk, beta, temperature, weight)
        expected = self.expected(beta, temperature, weight)
        values = found.total, found.cross_entropy.sum(), found.divergence.sum()
        for one, other in zip(values, expected, strict=True):
            assert abs(one - other) <= close * max(1.0, abs(other))
        gradients = torch.autograd.grad(0.37 * found.total, self.leaves)
        wanted = torch.autograd.grad(0.37 * expected[0], self.leaves, allow_unused=True)
        for one, other in zip(gradients, wanted, strict=True):
            assert other is not None
            assert other.abs().max() > 1e-3
            assert (one - other).abs().max() <= close * max(1.0, other.abs().max())
