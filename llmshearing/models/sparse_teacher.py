"""A teacher's distributions as a few token ids with probabilities for each position.

A sample is unbiased: the expected estimate of every probability is the probability, so the expected
gradient of the forward KL divergence, which is linear in the teacher's probabilities, is that of
the whole distribution (Anshumann et al. 2025, arXiv 2503.16870). There, ids are drawn with
replacement. Here they are distinct, so that none takes two places: id v is drawn with probability
min(1, c p_v), where c makes these add up to the number of places, by systematic sampling (Madow
1949), and its estimate is p_v over that. The most probable ids are not unbiased: the others count
as probability 0.

Shape legend: n tokens, C token ids of the teacher, K places, B batch, T tokens of a row.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.models.divergence import Comparison, log_softmax_

ALL_CERTAIN = 1e300  # the factor c where all ids with a probability fit into the places


def sample(probabilities: Tensor, places: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw distinct ids; each expected estimate is the id's probability.

    Args:
        probabilities: [n, C], at least float32.
        places: ids to draw, K; at most C.
        draws: a uniform number from 0 to below 1 for each token, float64 [n].

    Returns:
        Ids and estimates, [n, K], int64 and float64. Where fewer ids have a probability, the
        estimates of the other places are 0.
    """
    p = probabilities.double()
    p = p / p.sum(-1, keepdim=True)
    most, which = p.topk(places)
    others = p.scatter(1, which, 0.0).sum(-1, keepdim=True)  # 1 - most.sum(-1) would cancel
    left = most.flip(-1).cumsum(-1).flip(-1) + others
    factors = torch.arange(places, 0, -1, device=p.device) / left.clamp(min=1 / ALL_CERTAIN)
    uncertain = factors * most < 1  # once the ids before have a place for certain
    first = uncertain.int().argmax(-1, keepdim=True)
    factor = factors.gather(1, first).where(uncertain.any(-1, keepdim=True), ALL_CERTAIN)
    included = (factor * p).clamp(max=1)
    points = draws[:, None] + torch.arange(places, device=p.device)
    ends = included.cumsum(-1)
    ids = torch.searchsorted(ends, points, right=True).clamp(max=p.shape[1] - 1)
    estimates = p.gather(1, ids) / included.gather(1, ids)
    return ids, estimates.where(points < ends[:, -1:], 0.0)


def most_probable(probabilities: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """The K most probable ids with their probabilities among each other; biased.

    Args:
        probabilities: [n, C].
        places: K, at most C.

    Returns:
        Ids and probabilities, [n, K], int64 and float64.
    """
    most = probabilities.double().topk(places)
    return most.indices, most.values / most.values.sum(-1, keepdim=True)


class CachedTeacher:
    """A teacher whose distributions come with the batch.

    Args:
        vocabulary: number of its token ids.
    """

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def on(self, batch: Mapping[str, Tensor]) -> "SparseDistributions":
        """The distributions of a microbatch."""
        ids, probabilities = batch["teacher_ids"], batch["teacher_probabilities"]
        flat = (one.flatten(0, 1) for one in (ids, probabilities, batch["teacher_entropy"]))
        return SparseDistributions(self.vocabulary, *flat)


class SparseDistributions:
    """A teacher's distributions for N tokens; only their forward KL divergence can be computed.

    A plain class: FSDP looks for tensors to cast in tuples and dataclasses.

    Args:
        vocabulary: number of the teacher's token ids.
        ids: [N, K].
        probabilities: of these, [N, K]; they are scaled to the sum 1, which rounding changes.
        entropy: of the whole distribution in nats, [N].
    """

    def __init__(
        self, vocabulary: int, ids: Tensor, probabilities: Tensor, entropy: Tensor
    ) -> None:
        self.vocabulary, self.ids, self.entropy = vocabulary, ids, entropy
        self.probabilities = probabilities

    def compare(self, part: slice, logits: Tensor, beta: float, temperature: float) -> Comparison:
        """See `divergence.Teacher`; the temperature is that of the distributions."""
        assert beta == 0
        logs = log_softmax_(logits[:, : self.vocabulary] / temperature)
        each, mix_ = self.compare_logs(part, logs)
        slope = logs.exp_()
        mix_(slope, 1.0)
        return Comparison.of_slope(each, slope, temperature)

    def compare_logs(self, part: slice, logs: Tensor) -> Comparison:
        """See `divergence.Teacher`.

        The value is unbiased as well: cross entropy with the sample, less the exact entropy.
        """
        ids, wide = self.ids[part].long(), self.probabilities[part].to(logs.dtype)
        p = wide / wide.sum(-1, keepdim=True)
        each = -(p * logs.gather(1, ids)).sum(-1) - self.entropy[part]
        return Comparison(each, lambda q, share: q.scatter_add_(1, ids, -share * p))
