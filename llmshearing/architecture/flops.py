"""FlopsModel of training: floating-point operations per token, and the peaks of known devices.

The convention is that of PaLM (Chowdhery et al. 2022, appendix B), so that a utilisation here can
be set beside published ones: forward and backward pass of a dense decoder, attention over the whole
square (causality is not credited), recomputed activations and masks are not counted.
"""

from __future__ import annotations

import math

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape

FORMULA = "6 x matrix parameters + 12 x layers x heads x head_dim x sequence length"

# Dense bf16 tensor-core peak by part of the device's name, in operations per second, from NVIDIA's
# data sheets (without sparsity). The first that matches counts, so the longer names come first.
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
    """Parameters that every token is multiplied with.

    The output head counts, tied or not; the embedding, a lookup, does not; vectors do not.

    Args:
        table: the model's coupling table.
        shape: the sizes to count with; the table's source where not given.
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
    """Operations of the forward and backward pass per token.

    Args:
        table: the model's coupling table.
        sequence_length: tokens in a row.
        shape: the sizes to count with; the table's source where not given. While pruning the masked
            source is computed in full, so that its shape is the one to count.
    """
    shape = shape or table.source
    attention = 12 * shape.layers * shape.heads * shape.head_dim * sequence_length
    return 6 * matrix_parameters(table, shape) + attention


def peak_flops(device: str) -> float | None:
    """The dense bf16 peak of a device by its name (`NVIDIA H100 PCIe`); None where unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
