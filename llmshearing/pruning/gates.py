"""Gates along the dimensions of a parameter.

Shape legend: L layers, n units of an axis per layer, d hidden width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import Dim, Row, Stack

# Gate values per axis: [d] for HIDDEN, [L] for LAYER, [L, n] for the per-layer axes. An axis that
# is absent is not gated.
Gates = Mapping[Axis, Tensor]


def dim_gate(
    dim: Dim | Stack, sizes: Mapping[Axis, int], gates: Gates, layer: int | None
) -> Tensor | None:
    """The gate along one dimension of a parameter, or None if nothing multiplies it.

    Several axes combine as an outer product in row-major order. A unit's gate is repeated for each
    of its `multiple` entries.

    Returns:
        Shape [dim.size(sizes)].
    """
    present = [axis for axis in dim.axes if axis in gates]
    if isinstance(dim, Stack) or not dim.gated or not present:
        return None
    product: Tensor | None = None
    for axis in dim.axes:
        gate = _axis_gate(axis, sizes[axis], gates, layer, like=gates[present[0]])
        product = gate if product is None else (product[:, None] * gate[None, :]).flatten()
    assert product is not None
    return product.repeat_interleave(dim.multiple) if dim.multiple > 1 else product


def layer_gate(row: Row, gates: Gates, layer: int | None) -> Tensor | None:
    """The gate of the layer that owns the parameter, a scalar, or None if the row takes none."""
    if not row.layer_gated or Axis.LAYER not in gates:
        return None
    return gates[Axis.LAYER][layer]


def _axis_gate(axis: Axis, size: int, gates: Gates, layer: int | None, like: Tensor) -> Tensor:
    if axis not in gates:
        return torch.ones(size, dtype=like.dtype, device=like.device)
    return gates[axis][layer] if axis.per_layer else gates[axis]
