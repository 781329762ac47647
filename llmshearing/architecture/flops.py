"""Floating-point operations of training per token, and the peaks of known devices.

Operations are counted as in PaLM (Chowdhery et al. 2022, appendix B), so that utilisations compare
with published ones: the forward and backward pass of a dense decoder, with attention over all pairs
of positions (not only the causal half), without recomputed activations and without masks.
"""

from __future__ import annotations

import math

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape

# A teacher's forward pass adds a third of its own.
FORMULA = "6 x matrix parameters + 12 x layers x heads x head_dim x sequence length"

# Dense bf16 peak (without sparsity) in operations per second, from NVIDIA's data sheets, by part of
# the device's name. The first match counts, so longer names come before their prefixes.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}


def matrix_parameters(table: CouplingTable, shape: Shape | None = None) -> int:
    """The parameters of all matrices that each token is multiplied with, of `shape` or the source.

    The output head counts, tied or not. The embedding (a lookup) and vectors do not.
    """
    shape = shape or table.source
    sizes = table.sizes(shape)
    layer = sum(
        math.prod(dim.size(sizes) for dim in row.dims)
        for row in table.rows
        if row.per_layer and len(row.dims) == 2
    )
    return layer * shape.layers + shape.vocabulary * shape.hidden


def training_flops_per_token(
    table: CouplingTable, sequence_length: int, shape: Shape | None = None
) -> int:
    """Operations of the forward and backward pass per token, of `shape` or the source.

    Pruning computes the whole source, whatever its masks.
    """
    shape = shape or table.source
    attention = 12 * shape.layers * shape.heads * shape.head_dim * sequence_length
    return 6 * matrix_parameters(table, shape) + attention


def forward_flops_per_token(
    table: CouplingTable, sequence_length: int, shape: Shape | None = None
) -> int:
    """Operations of the forward pass alone per token, a third; see `training_flops_per_token`."""
    return training_flops_per_token(table, sequence_length, shape) // 3


def peak_flops(device: str) -> float | None:
    """The dense bf16 peak of a device by its name (`NVIDIA H100 PCIe`); None if unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
