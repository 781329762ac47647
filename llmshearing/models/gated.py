"""Gated versions of the few stock modules that a gate touches, with the same state-dict keys.

Gates multiply weights where a weight is smaller than its activations: the product is then exactly
what export writes, no activation is kept twice, and the cost does not grow with the batch.

Shape legend: B batch, T tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmshearing.architecture.coupling import CouplingTable, Row
from llmshearing.pruning.gates import Gates, dim_gate, layer_gate


class GatedEmbedding(nn.Embedding):
    """An embedding whose output is multiplied by the hidden gate."""

    gate: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """[B, T] token ids to [B, T, d]."""
        output = super().forward(input)
        return output if self.gate is None else (output * self.gate).to(output.dtype)


class GatedLinear(nn.Linear):
    """A projection whose inputs and outputs are gated, by way of its weight and bias."""

    in_gate: Tensor | None = None
    out_gate: Tensor | None = None

    def gated_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, multiplied by the gates; their own types are kept."""
        weight, bias = self.weight, self.bias
        if self.in_gate is not None:
            weight = weight * self.in_gate
        if self.out_gate is not None:
            weight = weight * self.out_gate[:, None]
            bias = None if bias is None else (bias * self.out_gate).to(self.bias.dtype)
        return weight.to(self.weight.dtype), bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """[..., in] to [..., out]."""
        return F.linear(input, *self.gated_parameters())


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm whose mean is taken over the kept dimensions only."""

    gate: Tensor | None = None

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, d] to [B, T, d], in float32 inside (float64 for float64 input).

        The stream is zero wherever the gate is, so a sum over all dimensions is one over the kept.
        """
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.promote_types(dtype, torch.float32))
        variance = x.pow(2).mean(-1, keepdim=True)
        weight = self.weight
        if self.gate is not None:
            kept = self.gate.detach().count_nonzero().to(x.dtype)
            variance = variance * (self.gate.numel() / kept)
            weight = (weight * self.gate).to(weight.dtype)
        return weight * (x * torch.rsqrt(variance + self.epsilon)).to(dtype)


class GatedLayerNorm(nn.LayerNorm):
    """Layer norm whose mean and variance are taken over the kept dimensions only.

    With the dropped dimensions set to the kept ones' mean, the mean over all d dimensions is that
    over the k kept ones and the variance is k / d of theirs. Scaling the input by sqrt(d / k) makes
    up for that, epsilon included, so that the fused kernel serves; the weight undoes the scale.
    """

    gate: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """[B, T, d] to [B, T, d], in float32 inside (float64 for float64 input).

        The stream is zero wherever the gate is, so a sum over all dimensions is one over the kept.
        """
        if self.gate is None:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dropped = (self.gate.detach() == 0).to(x.dtype)
        kept = dropped.numel() - dropped.sum()
        scale = (dropped.numel() / kept).sqrt()
        mean = x.sum(-1, keepdim=True) / kept
        filled = torch.addcmul(x * scale, mean * scale, dropped)
        weight = (self.weight * self.gate).to(self.weight.dtype).to(x.dtype) / scale
        bias = None if self.bias is None else (self.bias * self.gate).to(self.bias.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return F.layer_norm(filled, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def _gated_embedding(stock: nn.Module) -> nn.Module:
    assert isinstance(stock, nn.Embedding)
    gated = GatedEmbedding(1, 1, padding_idx=None, device="meta")
    gated.num_embeddings, gated.embedding_dim = stock.num_embeddings, stock.embedding_dim
    gated.padding_idx = stock.padding_idx
    gated.weight = stock.weight
    return gated


L = TypeVar("L", bound=GatedLinear)


def as_gated_linear(stock: nn.Linear, kind: type[L]) -> L:
    """A gated projection with the parameters and the mode of a stock one."""
    gated = kind(1, 1, bias=stock.bias is not None, device="meta")
    gated.in_features, gated.out_features = stock.in_features, stock.out_features
    gated.weight, gated.bias = stock.weight, stock.bias
    gated.train(stock.training)
    return gated


def _gated_layer_norm(stock: nn.Module) -> nn.Module:
    assert isinstance(stock, nn.LayerNorm)
    gated = GatedLayerNorm(list(stock.normalized_shape), eps=stock.eps, device="meta")
    gated.weight, gated.bias = stock.weight, stock.bias
    return gated


def _gated_linear(stock: nn.Module) -> nn.Module:
    assert isinstance(stock, nn.Linear)
    return stock if isinstance(stock, GatedLinear) else as_gated_linear(stock, GatedLinear)


def _gated_rms_norm(stock: nn.Module) -> nn.Module:
    epsilon = getattr(stock, "variance_epsilon", None)
    assert isinstance(stock.weight, nn.Parameter)
    assert isinstance(epsilon, float)
    return GatedRMSNorm(stock.weight, epsilon)


BUILDERS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    nn.Embedding: _gated_embedding,
    nn.Linear: _gated_linear,
    nn.LayerNorm: _gated_layer_norm,
}


def _builder(stock: nn.Module) -> Callable[[nn.Module], nn.Module]:
    for kind, build in BUILDERS.items():
        if isinstance(stock, kind):
            return build
    return _gated_rms_norm


@dataclass(frozen=True)
class GateSite:
    """One gated module with the row and layer that say which gates it takes."""

    module: nn.Module
    row: Row
    layer: int | None


def insert_gates(model: nn.Module, table: CouplingTable) -> list[GateSite]:
    """Swap each module that a gate touches for its gated version; parameters stay the same objects.

    Returns:
        The places where gates act. Until `set_gates` is called, outputs equal the stock model's.
    """
    sites = []
    for row in table.rows:
        if not row.gated or row.name.endswith(".bias"):
            continue  # a bias belongs to the module that its weight's row has named
        for layer, name in row.instances(table.source.layers):
            parent_name, _, child = name.rpartition(".")[0].rpartition(".")
            parent = model.get_submodule(parent_name)
            stock = parent.get_submodule(child)
            gated = _builder(stock)(stock)
            gated.train(stock.training)
            setattr(parent, child, gated)
            sites.append(GateSite(gated, row, layer))
    return sites


def set_gates(sites: list[GateSite], table: CouplingTable, gates: Gates) -> None:
    """Hand every gated module its gates for the coming forward; an empty mapping removes them.

    The modules hold the tensors until the next call, so that a block recomputed in the backward
    pass (activation checkpointing) sees the gates of its forward.
    """
    sizes = table.sizes(table.source)
    for site in sites:
        along = [dim_gate(dim, sizes, gates, site.layer) for dim in site.row.dims]
        if isinstance(site.module, GatedLinear):
            scale = layer_gate(site.row, gates, site.layer)
            site.module.in_gate = along[1]
            site.module.out_gate = _out_gate(along[0], scale, site.module.out_features)
        elif isinstance(site.module, GatedEmbedding | GatedRMSNorm | GatedLayerNorm):
            site.module.gate = along[-1]


def _out_gate(along: Tensor | None, scale: Tensor | None, size: int) -> Tensor | None:
    if scale is None:
        return along
    return scale.expand(size) if along is None else along * scale
