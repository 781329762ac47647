"""Losses as sums and counts, so that a domain without rows has no loss rather than NaN."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torchmetrics import Metric

IGNORED = -100


def shifted(labels: Tensor) -> Tensor:
    """The target of each position is the next token; the last has none. [B, T] to [B, T]."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


class HeldOutLoss(Metric):
    """Mean loss per target token; the same for any split into batches and ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, counted: Tensor) -> None:
        """Add losses [B, T] with their mask [B, T]."""
        self.total += losses.sum(dtype=torch.float64)
        self.count += counted.sum()

    def compute(self) -> Tensor:
        """The mean in nats per token."""
        return self.total / self.count


class DomainSums:
    """Training losses per domain since they were last taken, on the device of the losses."""

    def __init__(self, domains: int) -> None:
        self.totals, self.counts = torch.zeros(domains), torch.zeros(domains)

    def add(self, losses: Tensor, counted: Tensor, domain: Tensor) -> None:
        """Add losses [B, T], their mask [B, T] and the rows' domains [B]."""
        self.totals, self.counts = self.totals.to(domain.device), self.counts.to(domain.device)
        self.totals.index_add_(0, domain, losses.detach().sum(-1).float())
        self.counts.index_add_(0, domain, counted.sum(-1).float())

    def take(self) -> Tensor:
        """Sums and numbers of targets over all ranks, [2, D] in float64; all ranks call it."""
        taken = torch.stack([self.totals, self.counts]).double()
        if dist.is_initialized():
            dist.all_reduce(taken)
        self.totals, self.counts = torch.zeros_like(self.totals), torch.zeros_like(self.counts)
        return taken
