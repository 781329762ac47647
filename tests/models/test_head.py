"""The loss head equals the loss over whole logits, in value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from models_zoo import COMMON, build, variants

from llmshearing.models.head import LossHead, insert_loss_head
from llmshearing.models.metrics import IGNORED, shifted
from llmshearing.models.shearing import ShearingModel

CHUNKS = [1, 4, 7, 22, 100, 0]


def head_of(bias: bool, dtype: torch.dtype, chunk: int) -> LossHead:
    generator = torch.Generator().manual_seed(1)
    head = LossHead(6, 9, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    head.chunk = chunk
    return head


@pytest.mark.parametrize("chunk", [2, 0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_equal_those_of_the_loss_over_whole_logits(chunk, bias, gated):
    head = head_of(bias, torch.float64, chunk)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(6, generator=generator, dtype=torch.float64, requires_grad=True)
    if gated:
        head.in_gate = gate
    leaves = [hidden, *head.parameters(), *([gate] if gated else [])]
    targets = torch.tensor([[3, IGNORED, 8], [0, 5, IGNORED]])
    whole = F.cross_entropy(
        head(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
    )
    found = head.losses(hidden, targets).total
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)
    expected = torch.autograd.grad(0.37 * whole, leaves)
    for one, other in zip(torch.autograd.grad(0.37 * found, leaves), expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def stock_losses(model, tokens, labels):
    """The losses computed from whole logits."""
    logits, targets = model(tokens).logits, shifted(labels)
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view_as(targets), (targets != IGNORED).sum()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_losses_and_gradients_do_not_depend_on_the_chunk_size(variant, dtype, close):
    model, _ = build(variant)
    model.to(dtype)
    tokens = torch.randint(0, COMMON["vocab_size"], (2, 11), generator=torch.Generator())
    labels = tokens.clone()
    labels[0, 4:7] = IGNORED
    expected, count = stock_losses(model, tokens, labels)
    (expected.sum() / count).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    batch = {"input_ids": tokens, "labels": labels, "domain": torch.tensor([0, 1])}
    for chunk in CHUNKS:
        shearing = ShearingModel(model, None, domains=2, loss_chunk=chunk)
        model.zero_grad()
        outputs = shearing(batch)
        shearing.loss(outputs, batch)["total"].backward()
        torch.testing.assert_close(outputs.losses.cross_entropy, expected, atol=close, rtol=close)
        for name, parameter in model.named_parameters():
            most = close * max(1.0, gradients[name].abs().max().item())
            torch.testing.assert_close(parameter.grad, gradients[name], atol=10 * most, rtol=0)
        sums = torch.stack([shearing.domain_loss.totals, shearing.domain_loss.counts])
        torch.testing.assert_close(sums[0], expected.sum(1).detach().float())
        assert sums[1].tolist() == [7, 10]
    assert list(model.state_dict()) == keys


def test_without_targets_the_model_returns_the_stock_logits():
    model, _ = build(variants()[0])
    tokens = torch.arange(22).reshape(2, 11)
    with torch.no_grad():
        expected = model(tokens).logits
        insert_loss_head(model, chunk=4)
        assert torch.equal(model(tokens).logits, expected)


def test_tied_weights_remain_one_parameter():
    model, _ = build(next(v for v in variants() if v.config.get("tie_word_embeddings")))
    insert_loss_head(model, chunk=4)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_no_gradient_is_computed_in_evaluation():
    head = head_of(bias=False, dtype=torch.float32, chunk=2)
    with torch.no_grad():
        losses = head.losses(torch.randn(1, 3, 6), torch.tensor([[1, 2, 3]]))
    assert not losses.total.requires_grad
    assert losses.cross_entropy.shape == (1, 3)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_under_autocast_logits_are_bfloat16_and_losses_float32(chunk):
    head = head_of(bias=False, dtype=torch.float32, chunk=chunk)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 11, 6, generator=generator, requires_grad=True)
    targets = torch.randint(0, 9, (2, 11), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, head.weight)
        expected = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        found = head.losses(hidden, targets).total
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected, [hidden, head.weight])
    gradients = torch.autograd.grad(found, [hidden, head.weight])
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_batch_without_targets_has_a_loss_of_zero():
    head = head_of(bias=False, dtype=torch.float32, chunk=2)
    hidden = torch.randn(1, 3, 6, requires_grad=True)
    total = head.losses(hidden, torch.full((1, 3), IGNORED)).total
    total.backward()
    assert total.item() == 0
    assert hidden.grad.abs().max() == 0
