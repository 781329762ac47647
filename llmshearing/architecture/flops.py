"""Floating-point operations of training per token, and the peaks of known devices.

Operations are counted as in PaLM (Chowdhery et al. 2022, appendix B), so that utilisations compare
with published ones: the forward and backward pass of a dense decoder, with attention over all pairs
of positions (not only the causal half), without recomputed activations and without masks.
"""

import math
from typing import NamedTuple

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape

# A teacher's forward pass adds a third of its own.
FORMULA = "6 x matrix parameters + 12 x layers x heads x head_dim x sequence length"


class Gpu(NamedTuple):
    """What is known of a kind of GPU."""

    peak: float  # dense bf16 operations per second (without sparsity), from NVIDIA's data sheets
    memory: float  # GiB that a process can allocate; the driver reports less than the name says


GPUS = {
    "A100-80GB": Gpu(312e12, 79.1),
    "A100-40GB": Gpu(312e12, 39.4),
    "H100": Gpu(989e12, 79.1),
    "H100 PCIe": Gpu(756e12, 79.1),
    "H100 NVL": Gpu(835e12, 93.1),
    "GH200": Gpu(989e12, 94.5),
    "H200": Gpu(989e12, 139.8),
    "H800": Gpu(989e12, 79.1),
    "H20": Gpu(148e12, 95.6),
    "B200": Gpu(2250e12, 178.3),
    "A800": Gpu(312e12, 79.1),
    "A40": Gpu(149.7e12, 44.4),
    "A30": Gpu(165e12, 23.5),
    "A10G": Gpu(70e12, 22.0),
    "A10": Gpu(125e12, 22.0),
    "L40S": Gpu(362e12, 44.4),
    "L40": Gpu(181e12, 44.4),
    "L4": Gpu(121e12, 22.0),
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
    found = [name for name in GPUS if name.partition("-")[0] in device]
    return GPUS[max(found, key=len)].peak if found else None
