"""A few of a teacher's token ids in place of its whole distributions."""

import itertools

import pytest
import torch
from distillation_case import Case

from llmshearing.models.divergence import Distillation, LogitTransform
from llmshearing.models.metrics import IGNORED
from llmshearing.models.sparse_teacher import (
    CachedTeacher,
    SparseDistributions,
    most_probable,
    sample,
)

DRAWS = 4000


def distributions(rows=3, ids=40, scale=3.0, seed=0):
    """Random ones: a few ids are far more probable than the places' share, most far less."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, ids, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def uniform(count, seed=1):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(ids, estimates, vocabulary):
    empty = torch.zeros(len(ids), vocabulary, dtype=torch.float64)
    return empty.scatter_add_(1, ids, estimates)


def sparse(case, choose, temperature=1.0):
    """The teacher of a case by some of its ids."""
    outputs = torch.nn.functional.linear(
        case.teacher_hidden.flatten(0, 1), case.teacher_weight, case.teacher_bias
    )
    p = (outputs[:, : case.head.out_features] / temperature).softmax(-1)
    ids, estimates = choose(p)
    return SparseDistributions(p.shape[1], ids, estimates, torch.special.entr(p).sum(-1))


def losses(case, teacher, weight=0.7, temperature=1.0, chunk=7):
    case.head.in_gate, case.head.chunk = case.gate, chunk
    case.head.transform = case.student_transform
    given = Distillation(teacher, weight, 0.0, temperature)
    return case.head.losses(case.hidden, case.targets, given)


def even_case():
    """A teacher whose ids are all drawn now and then."""
    case = Case(torch.float64)
    case.teacher_weight *= 0.3
    case.teacher_bias *= 0.3
    return case


def gradients(case, found):
    return torch.autograd.grad(found.total, case.leaves)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("places", [1, 5, 39, 40])
def test_drawn_ids_are_distinct_and_their_estimates_add_up_to_one(scale, places):
    p = distributions(scale=scale)
    ids, estimates = sample(p, places, uniform(len(p)))
    for one, estimate in zip(ids, estimates, strict=True):
        used = one[estimate > 0].tolist()
        assert len(set(used)) == len(used)
    torch.testing.assert_close(estimates.sum(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("places", [1, 5, 20])
def test_expected_estimates_are_the_probabilities(places):
    p = distributions(rows=1).expand(DRAWS, -1)
    found = dense(*sample(p, places, uniform(DRAWS)), 40)
    uncertain = found[found > 0].min()  # the estimate of every id that is not certain
    error = (p[0] * uncertain / DRAWS) ** 0.5
    assert ((found.mean(0) - p[0]).abs() <= 4 * error).all()
    assert (found.std(0) > 0).sum() > 10  # the rest is certain, or rare


def test_the_points_of_a_sample_cover_every_id_by_its_probability():
    """The mean over evenly spread draws is an integral, without the noise of random draws."""
    p = distributions(rows=1).expand(DRAWS, -1)
    draws = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    found = dense(*sample(p, 5, draws), 40).mean(0)
    torch.testing.assert_close(found, p[0], rtol=0, atol=1.0 / DRAWS)


def test_a_sample_varies_less_than_draws_with_replacement():
    p = distributions(rows=1).expand(DRAWS, -1)
    ours = dense(*sample(p, 8, uniform(DRAWS)), 40).var(0).sum()
    independent = (p[0] * (1 - p[0]) / 8).sum()
    assert ours < 0.5 * independent


def test_ids_without_a_probability_are_never_used():
    p = torch.zeros(2, 40, dtype=torch.float64)
    p[0, [3, 17]] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    p[1, 39] = 1
    torch.testing.assert_close(dense(*sample(p, 5, uniform(2)), 40), p)


def test_float32_probabilities_of_a_large_vocabulary_are_drawn_within_it():
    p = distributions(rows=4, ids=32_000, scale=2.0).float()
    draws = torch.tensor([0.0, 0.3, 0.999999, 1 - 2**-53], dtype=torch.float64)
    ids, estimates = sample(p, 32, draws)
    assert all(len(set(one)) == 32 for one in ids.tolist())
    torch.testing.assert_close(estimates.sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_expected_gradient_of_a_sample_is_that_of_the_whole_distribution(weight):
    case = even_case()
    wanted = gradients(case, case.found(7, 0.0, 1.0, weight))
    seeds = range(300)
    found = [
        gradients(case, losses(case, sparse(case, lambda p, s=s: sample(p, 3, uniform(10, s))),
                               weight))
        for s in seeds
    ]  # fmt: skip
    for number, exact in enumerate(wanted):
        drawn = torch.stack([one[number] for one in found])
        error = drawn.std(0) / len(seeds) ** 0.5
        assert error.max() > 1e-3
        assert ((drawn.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()


def test_the_expected_divergence_of_a_sample_is_that_of_the_whole_distribution():
    case = even_case()
    wanted = case.found(7, 0.0, 1.0, 1.0).divergence
    found = torch.stack(
        [
            losses(case, sparse(case, lambda p, s=s: sample(p, 3, uniform(10, s)))).divergence
            for s in range(300)
        ]
    )
    error = found.std(0) / 300**0.5
    assert ((found.mean(0) - wanted).abs() <= 4.5 * error + 1e-12).all()


GRID = list(itertools.product((1.0, 2.0), (0.0, 0.3, 1.0), (0, 7)))


@pytest.mark.parametrize("sizes", [(11, 11), (14, 11)], ids=["equal", "padded_student"])
@pytest.mark.parametrize(("temperature", "weight", "chunk"), GRID)
def test_with_all_ids_a_sample_is_the_whole_distribution(sizes, temperature, weight, chunk):
    case = Case(torch.float64, student_ids=sizes[0], teacher_ids=sizes[1])
    case.student_transform = LogitTransform(scale=0.5, softcap=3.0)
    wanted = case.found(chunk, 0.0, temperature, weight)
    teacher = sparse(case, lambda p: sample(p, 11, uniform(len(p))), temperature)
    found = losses(case, teacher, weight, temperature, chunk)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(case, found), gradients(case, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_most_probable_ids_are_biased_unless_they_are_all():
    case = Case(torch.float64)
    exact = gradients(case, case.found(7, 0.0, 1.0, 1.0))
    for places, close in ((11, True), (3, False)):
        teacher = sparse(case, lambda p, k=places: most_probable(p, k))
        found = gradients(case, losses(case, teacher, 1.0))
        gaps = [(one - other).abs().max() for one, other in zip(found, exact, strict=True)]
        assert all(gap < 1e-12 if close else gap > 1e-2 for gap in gaps)


def test_positions_without_a_target_have_no_loss_and_no_gradient():
    case = Case(torch.float64)
    found = losses(case, sparse(case, lambda p: most_probable(p, 3)))
    masked = case.targets == IGNORED
    gradient = torch.autograd.grad(found.total, case.hidden)[0]
    assert (found.divergence[masked] == 0).all()
    assert (gradient[masked] == 0).all()
    assert (gradient[~masked].abs().amax(-1) > 0).all()


def test_a_batch_brings_the_distributions_of_its_positions():
    """As they are read: int32 ids, and float16 probabilities that do not quite add up to 1."""
    case = Case(torch.float32)
    whole = sparse(case, lambda p: sample(p, 5, uniform(len(p))))
    batch = {
        "teacher_ids": whole.ids.int().view(2, 5, 5),
        "teacher_probabilities": whole.probabilities.half().view(2, 5, 5),
        "teacher_entropy": whole.entropy.view(2, 5),
    }
    found = losses(case, CachedTeacher(11).on(batch))
    wanted = losses(case, whole)
    torch.testing.assert_close(found.divergence, wanted.divergence, rtol=0, atol=5e-3)
    assert not torch.equal(found.divergence, wanted.divergence)
    assert (batch["teacher_probabilities"].float().sum(-1) - 1).abs().max() > 1e-5
    slope = torch.autograd.grad(
        losses(case, CachedTeacher(11).on(batch), 1.0).total, case.head.bias
    )
    assert slope[0].sum().abs() < 1e-5  # as of two distributions
