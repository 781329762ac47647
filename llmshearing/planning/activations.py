"""What a forward pass saves for the backward pass, in bytes.

The stock model with its gates runs on fake tensors, which have shapes and storages but no data, and
autograd's hooks count the storages it saves. So every family is planned as it is computed. A
layer's share is what it adds to a model with one layer of each kind.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.models.blocks import decoder_of


@dataclass(frozen=True)
class Numbers:
    """Bytes per number in the three ways in which a model is computed."""

    name: str  # `float32`, `autocast` (bf16, weights in float32) or `sharded` (bf16, FSDP2 casts)
    compute: int  # of projections, attention and logits
    # of the residual stream. Autocast adds to the float32 embedding, so it stays float32
    stream: int
    casts: bool  # whether the weights are cast in the forward pass and the casts saved


FLOAT32 = Numbers("float32", compute=4, stream=4, casts=False)
AUTOCAST = Numbers("autocast", compute=2, stream=4, casts=True)
SHARDED = Numbers("sharded", compute=2, stream=2, casts=False)


def numbers_of(precision: str, *, sharded: bool) -> Numbers:
    """How a run of this precision computes."""
    if precision == "fp32":
        return FLOAT32
    return SHARDED if sharded else AUTOCAST


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass."""

    rows: int  # number of rows
    length: int  # tokens in a row

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return self.rows * self.length


@dataclass(frozen=True)
class Activations:
    """Saved bytes of one forward."""

    layer: int  # of one decoder layer, with its gated weights; the mean, if they differ
    stream: int  # of the residual stream between two layers
    rest: int  # of everything outside the layers, with the output head's input
    weights: int  # the output head's cast (autocast)


def activations(
    config: Mapping[str, Any],
    table: CouplingTable,
    batch: Batch,
    numbers: Numbers,
    pruned: tuple[Axis, ...],
) -> Activations:
    """What one forward of a model saves, with masks on the axes `pruned`."""
    config = complete(json.dumps(config))
    plain = json.dumps({**config, "rope_scaling": None})  # changes values, not what is saved
    lists = [config[name] for name in family_of(config).layer_lists]
    kinds = [tuple(values[layer] for values in lists) for layer in range(table.source.layers)]
    first = {kind: kinds.index(kind) for kind in kinds}
    each = tuple(first.values())
    base = saved_bytes(plain, each, batch, numbers, pruned)
    added = {
        kind: saved_bytes(plain, (*each, layer), batch, numbers, pruned) - base
        for kind, layer in first.items()
    }
    units = table.source.hidden * batch.tokens
    return Activations(
        layer=-(-sum(added[kind] for kind in kinds) // len(kinds)),
        stream=units * numbers.stream,
        rest=base - sum(added.values()) + units * numbers.compute,
        weights=table.source.vocabulary * table.source.hidden * 2 if numbers.casts else 0,
    )


@functools.cache
def complete(config: str) -> dict[str, Any]:
    """A config with every default, both as in JSON; a stored one may lack the layers' types."""
    from llmshearing.huggingface.stock import complete_fields, stock_config

    return complete_fields(stock_config(json.loads(config)))


@functools.lru_cache(maxsize=256)
def saved_bytes(
    config: str, layers: tuple[int, ...], batch: Batch, numbers: Numbers, pruned: tuple[Axis, ...]
) -> int:
    """Bytes that autograd saves in a forward through some decoder layers, without the output head.

    The config is complete, as JSON; `pruned` are the axes with a mask.
    """
    import torch

    from llmshearing import substrate
    from llmshearing.huggingface.stock import stock_config, stock_model
    from llmshearing.models.gated import insert_gates, set_gates

    fields = json.loads(config)
    family = family_of(fields)
    shape = replace(family.read_shape(fields), layers=len(layers))
    fields = family.reshaped(fields, shape, layers)
    table = family.table(fields)
    saved = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in parameters:
            saved[id(storage)] = storage  # kept alive, so that no id is used twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with substrate.fake_tensors():
        # FSDP2 computes with bf16 copies of the parameters.
        dtype = torch.bfloat16 if numbers is SHARDED else torch.float32
        model = stock_model(stock_config(fields), dtype=dtype).train()
        if pruned:
            sizes = table.sizes(table.source)
            gates = {
                a: torch.ones(
                    (len(layers), sizes[a]) if a.per_layer else sizes[a], requires_grad=True
                )
                for a in pruned
            }
            set_gates(insert_gates(model, table), table, gates)
        parameters = {id(s): s for s in (p.untyped_storage() for p in model.parameters())}
        tokens = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=numbers is AUTOCAST), hooks:
            hidden = decoder_of(model)(input_ids=tokens, use_cache=False)
    del hidden
    return sum(storage.nbytes() for storage in saved.values())


def inner_projections(table: CouplingTable) -> int:
    """Projections of a layer to the intermediate width: two in a gated MLP, else one."""
    return sum(
        part.axes == (Axis.INTERMEDIATE,)
        for row in table.rows
        if len(row.dims) == 2
        for part in row.dims[0].parts
    )


def elements(table: CouplingTable, *, per_layer: bool) -> list[int]:
    """Elements of each tensor of one layer, or of each tensor outside the layers."""
    sizes = table.sizes(table.source)
    rows = [row for row in table.rows if row.per_layer == per_layer]
    return [math.prod(dim.size(sizes) for dim in row.dims) for row in rows]
