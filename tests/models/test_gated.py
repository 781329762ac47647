"""Gated modules: values, gradients, precision, and tracing without a sync."""

import pytest
import torch
from models_zoo import ZOO, build, variants
from torch import nn

from llmshearing.architecture.axes import Axis
from llmshearing.models.gated import GatedLayerNorm, insert_gates, set_gates

KEPT = [0, 2, 3, 7, 8, 11]


def gated_layer_norm(dtype=torch.float64, bias=True) -> tuple[GatedLayerNorm, nn.LayerNorm]:
    """A norm of 12 dimensions, 6 of which are kept, and the norm that export writes."""
    torch.manual_seed(0)
    gated = GatedLayerNorm(12, eps=1e-3, bias=bias, dtype=dtype)
    small = nn.LayerNorm(len(KEPT), eps=1e-3, bias=bias, dtype=dtype)
    gated.gate = torch.zeros(12, dtype=dtype)
    gated.gate[KEPT] = torch.tensor([1.3, 0.2, 1.0, 0.7, 1.0, 0.4], dtype=dtype)
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.copy_(torch.randn(12))
        small.weight.copy_((gated.weight * gated.gate)[KEPT])
        if bias:
            small.bias.copy_((gated.bias * gated.gate)[KEPT])
    return gated, small


def stream(dtype=torch.float64, mean=0.0) -> torch.Tensor:
    """Activations [B, T, d] that are 0 wherever the gate is."""
    x = torch.zeros(2, 5, 12, dtype=dtype)
    x[..., KEPT] = mean + torch.randn(2, 5, len(KEPT), dtype=dtype)
    return x


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_over_the_kept_dimensions_and_its_gradient(bias):
    gated, small = gated_layer_norm(bias=bias)
    x = stream().requires_grad_()
    y = x[..., KEPT].detach().requires_grad_()
    out, expected = gated(x), small(y)
    torch.testing.assert_close(out[..., KEPT], expected, rtol=1e-12, atol=1e-12)
    dropped = [n for n in range(12) if n not in KEPT]
    assert (out[..., dropped] == 0).all()
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad[..., KEPT], y.grad, rtol=1e-10, atol=1e-12)
    expected = small.weight.grad * gated.gate[KEPT]
    torch.testing.assert_close(gated.weight.grad[KEPT], expected)
    assert (gated.weight.grad[dropped] == 0).all()


def test_layer_norm_is_as_precise_as_the_stock_kernel_at_a_large_mean():
    gated, small = gated_layer_norm(torch.float32)
    x = stream(torch.float32, mean=1000.0)
    exact = small.double()(x[..., KEPT].double())
    stock = (small.float()(x[..., KEPT]) - exact).abs().max()
    assert (gated(x)[..., KEPT] - exact).abs().max() < 10 * stock + 1e-6


def test_layer_norm_in_bfloat16_computes_in_float32():
    gated, small = gated_layer_norm(torch.bfloat16)
    x = stream(torch.bfloat16, mean=3.0)
    out = gated(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[..., KEPT], small(x[..., KEPT]), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("family", ZOO)
def test_a_gated_block_traces_as_one_graph_without_a_sync(family):
    """A data-dependent shape or a value read from the device would break the graph."""
    variant = next(v for v in variants() if v.family == family)
    model, table = build(variant)
    sites = insert_gates(model, table)
    sizes, layers = table.sizes(table.source), table.source.layers
    gates = {a: torch.rand((layers, n) if a.per_layer else n) for a, n in sizes.items()}
    gates[Axis.HIDDEN][::3] = 0
    set_gates(sites, table, gates)
    tokens = torch.arange(16).reshape(2, 8)
    block = model.get_submodule(f"{variant.places.layers}.1")
    seen = {}
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(tokens, use_cache=False)
        handle.remove()
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        whole = compiled(*seen["args"], **seen["kwargs"])
        plain = block(*seen["args"], **seen["kwargs"])
    for one, other in (
        zip(whole, plain, strict=True) if isinstance(plain, tuple) else [(whole, plain)]
    ):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()
