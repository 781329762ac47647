"""The distilled loss equals a plain one over both models' whole logits, in value and gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from distillation_case import Case, reference
from models_zoo import COMMON, build, variants

from llmshearing.models.blocks import decoder_of
from llmshearing.models.divergence import Distillation, LogitTransform, TeacherStates, divergence_
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.models.head import insert_loss_head
from llmshearing.models.metrics import IGNORED, shifted
from llmshearing.pruning.gates import Gates

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.3}
STUDENT = LogitTransform(scale=0.5, softcap=3.0)
TEACHER = LogitTransform(scale=2.0, softcap=5.0)
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-6}


GRID = list(itertools.product(BETAS.values(), (1.0, 2.0), (0.0, 0.3, 1.0), (0, 7, 1024)))


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("beta", "temperature", "weight", "chunk"), GRID)
def test_losses_and_gradients_equal_those_of_whole_logits(dtype, beta, temperature, weight, chunk):
    Case(dtype).check(CLOSE[dtype], chunk, beta, temperature, weight)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("sizes", [(11, 14), (14, 11)], ids=["wide_teacher", "wide_student"])
@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_padded_vocabularies_are_compared_on_their_common_ids(dtype, sizes, beta):
    case = Case(dtype, student_ids=sizes[0], teacher_ids=sizes[1])
    case.check(CLOSE[dtype], 7, beta, 2.0, 0.3)


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_padding_takes_no_part_in_the_divergence_whatever_its_logits(beta):
    case = Case(torch.float64, student_ids=11, teacher_ids=14)
    before = case.found(7, beta, 1.0, 0.3)
    case.teacher_weight[11:] *= 100  # a logit of 0 in its place would also change the result
    assert torch.equal(case.found(7, beta, 1.0, 0.3).divergence, before.divergence)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "transforms",
    [
        (STUDENT, TEACHER),
        (LogitTransform(scale=0.5), LogitTransform(scale=2.0)),
        (LogitTransform(softcap=3.0), LogitTransform(softcap=5.0)),
    ],
    ids=["both", "scale", "softcap"],
)
def test_soft_caps_and_scales_of_both_families_are_honoured(dtype, beta, temperature, transforms):
    case = Case(dtype)
    case.student_transform, case.teacher_transform = transforms
    case.check(CLOSE[dtype], 7, beta, temperature, 0.3)


def test_the_transform_is_read_from_the_fields_of_the_families():
    class Config:
        logits_scaling = 8.0
        final_logit_softcapping = 30.0

    assert LogitTransform.of(Config()) == LogitTransform(1 / 8, 30.0)
    Config.logit_scale = 4.0
    assert LogitTransform.of(Config()) == LogitTransform(1 / 2, 30.0)
    assert LogitTransform.of(object()) == LogitTransform()


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_positions_without_a_target_have_no_loss_and_no_gradient(beta):
    case = Case(torch.float64)
    found = case.found(4, beta, 1.0, 0.5)
    gradient = torch.autograd.grad(found.total, case.hidden)[0]
    masked = case.targets == IGNORED
    for one in (found.cross_entropy, found.divergence, gradient.abs().amax(-1)):
        assert (one[masked] == 0).all()
        assert (one[~masked] > 0).all()


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_a_microbatch_without_targets_has_a_loss_of_zero(beta):
    case = Case(torch.float32)
    case.targets[:] = IGNORED
    found = case.found(7, beta, 1.0, 0.5)
    assert found.total == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(found.total, case.leaves))


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_weight_of_zero_is_plain_cross_entropy_bit_for_bit(beta, temperature):
    case = Case(torch.float32)
    found = case.found(7, beta, temperature, 0.0)
    plain = case.head.losses(case.hidden, case.targets)
    assert torch.equal(found.total, plain.total)
    assert torch.equal(found.cross_entropy, plain.cross_entropy)
    assert plain.divergence is None
    one, other = (torch.autograd.grad(f.total, case.leaves) for f in (found, plain))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("transform", [LogitTransform(), STUDENT])
def test_a_teacher_equal_to_the_student_gives_divergence_and_gradient_zero(beta, transform):
    case = Case(torch.float32)
    case.head.chunk, case.head.transform = 7, transform
    teacher = TeacherStates(
        case.hidden.detach().flatten(0, 1), case.head.weight.detach(), case.head.bias.detach(),
        transform,
    )  # fmt: skip
    found = case.head.losses(case.hidden, case.targets, Distillation(teacher, 1.0, beta))
    assert (found.divergence == 0).all()
    leaves = [case.hidden, *case.head.parameters()]
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(found.total, leaves))


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_distant_distributions_have_finite_divergences_and_gradients(beta):
    generator = torch.Generator().manual_seed(1)
    teacher, student = (
        (300 * torch.randn(4, 9, generator=generator)).log_softmax(-1) for _ in range(2)
    )
    each, slope = divergence_(teacher, student, beta)
    assert each.isfinite().all()
    assert slope.isfinite().all()
    assert (each > 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_teacher_may_give_some_ids_the_probability_zero(beta):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masked = logits.flip(0).clone()
    masked[:, 4:7] = -torch.inf
    each, slope = divergence_(masked.log_softmax(-1), logits.log_softmax(-1), beta)
    nearly = masked.clamp(min=-600)
    wanted, wanted_slope = divergence_(nearly.log_softmax(-1), logits.log_softmax(-1), beta)
    torch.testing.assert_close(each, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
def test_under_autocast_logits_are_bfloat16_and_losses_float32(chunk, beta):
    case = Case(torch.float32)
    teacher = TeacherStates(
        case.teacher_hidden.flatten(0, 1).bfloat16(), case.teacher_weight.bfloat16(),
        case.teacher_bias.bfloat16(),
    )  # fmt: skip
    case.head.chunk, leaves = chunk, [case.hidden, *case.head.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        found = case.head.losses(case.hidden, case.targets, Distillation(teacher, 0.3, beta))
        student = F.linear(case.hidden, case.head.weight, case.head.bias)
    logits = F.linear(teacher.hidden, teacher.weight, teacher.bias)
    assert student.dtype == logits.dtype == torch.bfloat16
    flat = student.flatten(0, 1), logits, case.targets.flatten()
    expected = reference(*flat, beta, 1.0, 0.3)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total.double(), expected[0], rtol=1e-6, atol=1e-5)
    wanted = torch.autograd.grad(expected[0], leaves)
    for one, other in zip(torch.autograd.grad(found.total, leaves), wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_whole_gated_models_have_the_gradients_of_the_reference(variant, beta):
    """Of every weight, tied or not, and of the gates of every axis; the teacher is ungated."""
    (model, table), (teacher, _) = build(variant), build(variant)
    model.double()
    teacher.double().requires_grad_(False)
    insert_loss_head(model, chunk=7)
    sites, generator = insert_gates(model, table), torch.Generator().manual_seed(3)
    sizes = table.sizes(table.source)
    gates: Gates = {
        axis: torch.rand(
            (table.source.layers, sizes[axis]) if axis.per_layer else (sizes[axis],),
            generator=generator,
            dtype=torch.float64,
        ).requires_grad_()
        for axis in sizes
    }
    tokens = torch.randint(0, COMMON["vocab_size"], (2, 11), generator=generator)
    labels = tokens.clone()
    labels[0, 4:7] = IGNORED
    leaves = [*model.parameters(), *gates.values()]
    set_gates(sites, table, gates)
    states = decoder_of(teacher)(tokens).last_hidden_state.flatten(0, 1)
    head = teacher.get_output_embeddings()
    transform = LogitTransform.of(teacher.config)
    wanted_from = TeacherStates(states, head.weight, head.bias, transform)
    distillation = Distillation(wanted_from, 0.3, beta, 2.0)
    found = model(tokens, targets=shifted(labels), distillation=distillation)
    flat = (logits.flatten(0, 1) for logits in (model(tokens).logits, teacher(tokens).logits))
    expected = reference(*flat, shifted(labels).flatten(), beta, 2.0, 0.3)
    assert abs(found.total - expected[0]) < 1e-9
    wanted = torch.autograd.grad(expected[0], leaves, retain_graph=True)  # of the gates
    for one, other in zip(torch.autograd.grad(found.total, leaves), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_losses_per_token_have_no_gradient():
    found = Case(torch.float64).found(7, 0.0, 1.0, 0.5)
    assert found.total.requires_grad
    assert not found.cross_entropy.requires_grad
    assert not found.divergence.requires_grad


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_narrow_teacher_is_compared_in_the_precision_of_the_model(beta, temperature):
    """Its hidden states may be wider than its head, as after a norm in float32."""
    case = Case(torch.float64)
    case.teacher_weight, case.teacher_bias = case.teacher_weight.bfloat16(), None
    rounded = case.teacher_hidden.bfloat16(), case.teacher_weight
    found = case.found(7, beta, temperature, 0.3)
    case.teacher_hidden, case.teacher_weight = (one.double() for one in rounded)
    wanted = case.found(7, beta, temperature, 0.3)
    assert found.divergence.dtype == torch.float64
    torch.testing.assert_close(found.divergence, wanted.divergence, rtol=0.1, atol=0.1)


def test_no_gradient_reaches_the_teacher():
    case = Case(torch.float64)
    case.teacher_hidden.requires_grad_()
    case.teacher_weight.requires_grad_()
    found = case.found(7, 0.0, 1.0, 0.5)
    given = torch.autograd.grad(
        found.total, [case.teacher_hidden, case.teacher_weight], allow_unused=True
    )
    assert given == (None, None)
