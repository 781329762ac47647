"""Cut parameters to the kept units and fold their gates into them."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, Dim, Row, Stack
from llmshearing.pruning.gates import Gates, dim_gate, layer_gate
from llmshearing.pruning.selection import Kept


def dim_indices(
    dim: Dim | Stack, sizes: Mapping[Axis, int], kept: Kept, layer: int | None
) -> Tensor | None:
    """The entries of one dimension that stay, ascending, or None if all stay."""
    if not any(axis in kept for axis in dim.axes):
        return None
    found, start = [], 0
    for part in dim.parts:
        found.append(start + _part_indices(part, sizes, kept, layer))
        start += part.size(sizes)
    return torch.cat(found)


def _part_indices(dim: Dim, sizes: Mapping[Axis, int], kept: Kept, layer: int | None) -> Tensor:
    indices = torch.zeros(1, dtype=torch.int64)
    for axis in dim.axes:
        units = _axis_units(axis, sizes[axis], kept, layer)
        indices = (indices[:, None] * sizes[axis] + units[None, :]).flatten()
    return (indices[:, None] * dim.multiple + torch.arange(dim.multiple)).flatten()


def cut(
    row: Row,
    tensor: Tensor,
    layer: int | None,
    sizes: Mapping[Axis, int],
    kept: Kept,
    gates: Gates,
) -> Tensor:
    """The exported version of one source parameter, of a layer or of none.

    `sizes`, `kept` and the gates of all units count units as the source does.

    Returns:
        The kept entries times their gates, in the tensor's dtype. The product is computed in the
        wider of the two dtypes and rounded once.
    """
    # A stored w stands for w + offset. Norms are small, so take the widest type.
    result, factors = (tensor.double() + row.offset if row.offset else tensor), []
    for number, dim in enumerate(row.dims):
        indices = dim_indices(dim, sizes, kept, layer)
        if indices is not None:
            result = result.index_select(number, indices)
        gate = dim_gate(dim, sizes, gates, layer) if row.absorbs else None
        if gate is not None:
            kept_gate = gate if indices is None else gate[indices]
            factors.append(kept_gate.reshape([-1] + [1] * (tensor.ndim - number - 1)))
    scale = layer_gate(row, gates, layer) if row.absorbs else None
    if scale is not None:
        # Type promotion ignores the dtype of a tensor without dimensions, so give it some.
        factors.append(scale.reshape([1] * tensor.ndim))
    if row.width_power and Axis.HIDDEN in kept:
        ratio = root(sizes[Axis.HIDDEN]) / root(len(kept[Axis.HIDDEN]))
        wide = torch.promote_types(tensor.dtype, torch.float32)
        factors.append(torch.full([1] * tensor.ndim, ratio**row.width_power, dtype=wide))
    for factor in factors:
        in_place = result is not tensor and torch.result_type(result, factor) == result.dtype
        result = result.mul_(factor) if in_place else result * factor
    return (result - row.offset if row.offset else result).to(tensor.dtype).contiguous()


def root(hidden: int) -> float:
    """The square root of a hidden size as stock models hold it, in float32."""
    return torch.tensor(hidden**0.5, dtype=torch.float32).item()


def _axis_units(axis: Axis, size: int, kept: Kept, layer: int | None) -> Tensor:
    if axis not in kept:
        return torch.arange(size)
    return kept[axis][layer] if axis.per_layer else kept[axis]


def cut_model(
    table: CouplingTable,
    kept: Kept,
    gates: Gates,
    read: Callable[[str], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the exported model, one at a time, in the table's order.

    `read` returns a source parameter by name; the gates are those of all units.

    Yields:
        (name in the exported model, tensor); kept layers are renumbered from 0.
    """
    sizes = table.sizes(table.source)
    layers = kept.get(Axis.LAYER, torch.arange(table.source.layers)).tolist()
    for row in table.rows:
        if not row.per_layer:
            yield row.name, cut(row, read(row.name), None, sizes, kept, gates)
            continue
        for new, old in enumerate(layers):
            tensor = read(row.name.format(layer=old))
            yield row.name.format(layer=new), cut(row, tensor, old, sizes, kept, gates)
