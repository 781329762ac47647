"""Gated versions of the few stock modules that a gate touches.

Gates multiply weights wherever a weight is smaller than its activations. The product is exactly
what export writes, no activation is stored twice, and the cost does not grow with the batch.

A stock module becomes gated by a change of its class, as in FSDP2, so its parameters, state-dict
keys, hooks and mode stay as they are. Without gates it computes what the stock module does.

Shape legend: B batch, T tokens, d hidden width.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmshearing.architecture.coupling import CouplingTable, Dim, Row
from llmshearing.pruning.gates import Gates, dim_gate, layer_gate


class GatedEmbedding(nn.Embedding):
    """An embedding whose output is multiplied by the hidden gate."""

    gate: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """[B, T] token ids to [B, T, d]."""
        output = super().forward(input)
        return output if self.gate is None else (output * self.gate).to(output.dtype)


class GatedLinear(nn.Linear):
    """A projection whose weight and bias are multiplied by the gates of its inputs and outputs."""

    in_gate: Tensor | None = None
    out_gate: Tensor | None = None

    def gated_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias times their gates, in their own dtypes."""
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
    """The stock RMS norms' computation, with the mean taken over the kept inputs only.

    Source: Sheared LLaMA, section 2.1.
    """

    row: Row  # of its weight
    gate: Tensor | None = None  # multiplies the output, [d]; None if nothing does
    kept: Tensor | None = None  # whether each input stays, [d]; None if all do
    weight: nn.Parameter

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, d] to [B, T, d], computed in float32 (in float64 for float64 input).

        The residual stream is 0 wherever the gate is, so the sum over all dimensions is the sum
        over the kept ones. Any other input is multiplied by 0 there.
        """
        if self.gate is None and self.kept is None:
            return super().forward(hidden_states)
        dtype = hidden_states.dtype
        x = hidden_states.to(torch.promote_types(dtype, torch.float32))
        squares = x.pow(2)
        if self.kept is not None and not self.row.norms_stream:
            squares = squares * self.kept
        variance = squares.mean(-1, keepdim=True)
        if self.kept is not None:
            variance = variance * (self.kept.numel() / self.kept.sum().to(x.dtype))
        weight: Tensor = self.weight
        if self.row.offset:
            weight = weight.to(x.dtype) + self.row.offset
        if self.gate is not None:
            weight = (weight * self.gate).to(weight.dtype)
        normalised = x * torch.rsqrt(variance + _epsilon(self))
        if self.row.rounds_last:
            return (weight * normalised).to(dtype)
        return weight * normalised.to(dtype)


def _epsilon(norm: nn.Module) -> Any:
    """What a stock RMS norm adds to the mean square; None for any other module."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


class GatedLayerNorm(nn.LayerNorm):
    """Layer norm with mean and variance taken over the kept dimensions only.

    Set the dropped dimensions to the mean of the k kept ones. The mean over all d dimensions is
    then the kept ones' mean, and the variance is k / d of their variance. Scaling the input by
    sqrt(d / k) corrects the variance, and its ratio to epsilon, so the fused kernel can be used;
    dividing the weight by the same factor undoes the scaling.
    """

    gate: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """[B, T, d] to [B, T, d], computed in float32 (in float64 for float64 input).

        The residual stream is 0 wherever the gate is, so the sum over all dimensions is the sum
        over the kept ones.
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


GATED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Embedding: GatedEmbedding,
    nn.Linear: GatedLinear,
    nn.LayerNorm: GatedLayerNorm,
}


@dataclass(frozen=True)
class GateSite:
    """A gated module, with the row and the layer that decide which gates it takes."""

    module: nn.Module
    row: Row
    layer: int | None


def insert_gates(model: nn.Module, table: CouplingTable) -> list[GateSite]:
    """Turn each module that a gate touches into its gated version, in place.

    Returns:
        The gated modules. Until `set_gates` is called, outputs equal the stock model's.
    """
    sites = []
    for row in table.rows:
        if row.name.endswith(".bias") or not (row.gated or (row.is_norm and row.dims[0].axes)):
            continue  # a bias belongs to the same module as its weight
        for layer, name in row.instances(table.source.layers):
            module = model.get_submodule(name.rpartition(".")[0])
            change_class(module, _gated_class(module))
            if isinstance(module, GatedRMSNorm):
                module.row = row
            sites.append(GateSite(module, row, layer))
    return sites


def change_class(module: nn.Module, to: type[nn.Module]) -> None:
    """Let the methods of a class override those of a module's own class."""
    changed: Any = module
    changed.__class__ = _overriding(to, type(module))


@functools.cache
def _overriding(to: type[nn.Module], stock: type[nn.Module]) -> type[nn.Module]:
    if issubclass(to, stock) or issubclass(stock, to):
        return to if issubclass(to, stock) else stock
    return type(f"{to.__name__}Of{stock.__name__}", (to, stock), {})


def _gated_class(module: nn.Module) -> type[nn.Module]:
    for stock, gated in GATED_CLASSES.items():
        if isinstance(module, stock):
            return gated
    assert isinstance(_epsilon(module), float), "not an RMS norm"
    return GatedRMSNorm


def set_gates(sites: list[GateSite], table: CouplingTable, gates: Gates) -> None:
    """Set the gates of every gated module; an empty mapping removes them.

    The modules keep the tensors until the next call, so a block that activation checkpointing
    recomputes in the backward pass sees the gates of its forward pass.
    """
    sizes = table.sizes(table.source)
    for site in sites:
        along = [dim_gate(dim, sizes, gates, site.layer) for dim in site.row.dims]
        if isinstance(site.module, GatedLinear):
            scale = layer_gate(site.row, gates, site.layer)
            site.module.in_gate = along[1]
            site.module.out_gate = _out_gate(along[0], scale, site.module.out_features)
        elif isinstance(site.module, GatedRMSNorm):
            scale = layer_gate(site.row, gates, site.layer)
            dim = site.row.dims[0]
            assert isinstance(dim, Dim)
            units = dim_gate(dim.with_gate, sizes, gates, site.layer)
            site.module.gate = _out_gate(along[0], scale, site.module.weight.numel())
            site.module.kept = None if units is None else units.detach() != 0
        elif isinstance(site.module, GatedEmbedding | GatedLayerNorm):
            site.module.gate = along[-1]


def _out_gate(along: Tensor | None, scale: Tensor | None, size: int) -> Tensor | None:
    if scale is None:
        return along
    return scale.expand(size) if along is None else along * scale
