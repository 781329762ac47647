"""Checks that a coupling table describes its stock model; the mutation test runs them too.

A `Specimen` is a small stock model in float64. Each `check_*` takes a specimen and a table, and
raises if the table does not describe the specimen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from models_zoo import COMMON, Places, Variant, build
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, expected_parameter_count
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape, sized
from llmshearing.huggingface.stock import complete_fields, stock_config, stock_model
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.pruning.selection import Kept, keep_only, select
from llmshearing.pruning.surgery import cut_model

Gates = dict[Axis, Tensor]
Axes = tuple[Axis, ...]

# Units to keep; `HEAD` counts the heads of a group under grouped-query attention.
SMALL = {Axis.LAYER: 2, Axis.KV_GROUP: 3, Axis.INTERMEDIATE: 9}
SOFT = (0.2, 1.5)


class Specimen:
    """A stock model in float64, its table, and stock models of smaller shapes to export into."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        stock, self.table = build(variant)
        self.model = in_float64(stock)
        self.config: dict[str, Any] = complete_fields(stock.config)
        self.family = family_of(self.config)
        self.weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.classes = {module: type(module) for module in self.model.modules()}
        self.generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(0, COMMON["vocab_size"], (2, 11), generator=self.generator)
        self._small: dict[tuple[Shape, tuple[int, ...]], PreTrainedModel] = {}

    @property
    def places(self) -> Places:
        """Where gates act, as the zoo states it."""
        return self.variant.places

    def small(self, shape: Shape, layers: Sequence[int] | None = None) -> PreTrainedModel:
        """A stock model of another shape, in float64; by default of the first layers."""
        key = shape, tuple(range(shape.layers) if layers is None else layers)
        if key not in self._small:
            fields = self.family.reshaped(self.config, *key)
            self._small[key] = in_float64(stock_model(stock_config(fields)).eval())
        return self._small[key]

    def restore(self) -> None:
        """Turn gated modules back into stock ones."""
        for module, stock in self.classes.items():
            module.__class__ = stock
            for gate in ("gate", "in_gate", "out_gate", "kept", "row"):
                vars(module).pop(gate, None)

    def logits(self, table: CouplingTable, gates: Gates) -> Tensor:
        """Logits of the gated model; its modules are the stock ones again afterwards."""
        try:
            set_gates(insert_gates(self.model, table), table, gates)
            with torch.no_grad():
                return self.model(self.tokens).logits
        finally:
            self.restore()


class RMSNorm(nn.Module):
    """The stock RMS norm without its cast to float32.

    Gemma's calls its epsilon `eps` and stores the weight minus 1.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.weight, self.offset = stock.weight, 0.0
        if hasattr(stock, "variance_epsilon"):
            self.variance_epsilon = stock.variance_epsilon
        else:
            self.variance_epsilon, self.offset = stock.eps, 1.0

    def forward(self, x: Tensor) -> Tensor:
        root = (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        return (self.weight + self.offset) * x / root


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, including its RMS norms, which otherwise compute in float32."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, RMSNorm(module))
    return model.double()


def target_shape(table: CouplingTable, axes: Sequence[Axis]) -> Shape:
    """The shape in which these axes are smaller; hidden follows the heads if it must."""
    sizes = table.sizes(table.source)
    heads = 1 if table.grouped else 2
    hidden = 12 if table.heads_divide_hidden else 14
    hidden = heads * table.source.head_dim if table.implied_head_size else hidden
    small = {**SMALL, Axis.HEAD: heads, Axis.HIDDEN: hidden}
    sizes |= {axis: small[axis] for axis in axes}
    return sized(table.source, sizes, grouped=table.grouped)


def subsets(table: CouplingTable) -> Iterator[Axes]:
    """All subsets of the axes whose shape the family's config can state."""
    axes = [axis for axis, size in table.sizes(table.source).items() if size > 1]
    for count in range(1, len(axes) + 1):
        for some in itertools.combinations(axes, count):
            if table.shape_error(target_shape(table, some)) is None:
                yield some


def draw(
    table: CouplingTable, axes: Axes, generator: torch.Generator, *, hard: bool
) -> tuple[Gates, Kept]:
    """Random gates, some above 1, with zeros for units that `select` drops."""
    sizes, layers = table.sizes(table.source), table.source.layers
    low, high = SOFT
    values = {}
    for axis in axes:
        shape = (layers, sizes[axis]) if axis.per_layer else (sizes[axis],)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        values[axis] = low + (high - low) * uniform
    kept = select(values, table.sizes(target_shape(table, axes)))
    gates = {a: torch.ones_like(v) for a, v in values.items()} if hard else values
    return keep_only(gates, kept), kept


def check_names_and_sizes(specimen: Specimen, table: CouplingTable) -> None:
    """The table names exactly the stock model's parameters, in two shapes."""
    *_, every = subsets(specimen.table)
    target = target_shape(specimen.table, every)
    for shape, model in ((table.source, specimen.model), (target, specimen.small(target))):
        sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert table.tensor_shapes(shape) == sizes
        assert table.parameter_count(shape) == sum(p.numel() for p in model.parameters())


def check_expected_count(specimen: Specimen, table: CouplingTable, axes: Axes) -> None:
    """With gates of 0 and 1, the expected count is the exported model's count."""
    gates, _ = draw(specimen.table, axes, specimen.generator, hard=True)
    sizes = {
        axis: gates[axis].sum(-1) if axis in gates else torch.tensor(float(size)).double()
        for axis, size in table.sizes(table.source).items()
    }
    layers = gates.get(Axis.LAYER, torch.ones(table.source.layers, dtype=torch.float64))
    count = expected_parameter_count(table.rows, sizes, layers).item()
    small = specimen.small(target_shape(specimen.table, axes))
    assert count == sum(p.numel() for p in small.parameters()), axes


def export(specimen: Specimen, table: CouplingTable, kept: Kept, gates: Gates) -> PreTrainedModel:
    """A stock model with the exported tensors; the next export of its shape overwrites it."""
    layers = kept[Axis.LAYER].tolist() if Axis.LAYER in kept else None
    small = specimen.small(target_shape(specimen.table, tuple(gates)), layers)
    tensors = dict(cut_model(table, kept, gates, specimen.weights.__getitem__))
    missing, unexpected = small.load_state_dict(tensors, strict=False)
    assert not unexpected
    tied = small.config.tie_word_embeddings
    assert set(missing) <= set(small._tied_weights_keys or () if tied else ())
    return small


def check_gated_equals_exported(
    specimen: Specimen, table: CouplingTable, axes: Axes, *, hard: bool
) -> None:
    """Both compute the same function (float64, 1e-10)."""
    gates, kept = draw(specimen.table, axes, specimen.generator, hard=hard)
    gated = specimen.logits(table, gates)
    with torch.no_grad():
        found = export(specimen, table, kept, gates)(specimen.tokens).logits
    difference = (gated - found).abs().max().item()
    assert difference < 1e-10, (axes, difference)
    assert gated.abs().max() > 1e-2


def check_gates_act_on_activations(specimen: Specimen, table: CouplingTable, axes: Axes) -> None:
    """The gated model computes what the stock model does with multiplied activations."""
    gates, _ = draw(specimen.table, axes, specimen.generator, hard=False)
    gated = specimen.logits(table, gates)
    difference = (gated - reference_logits(specimen, gates)).abs().max().item()
    assert difference < 1e-10, (axes, difference)


def reference_logits(specimen: Specimen, gates: Gates) -> Tensor:
    """Logits of the stock model with hooks that multiply activations, without any table."""
    model, places, shape = specimen.model, specimen.places, specimen.table.source
    hidden = gates.get(Axis.HIDDEN, torch.ones(shape.hidden, dtype=torch.float64))
    handles = []

    def scale_output(name: str, gate: Tensor) -> None:
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda _, args, out: out * gate))

    def scale_input(name: str, gate: Tensor) -> None:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda _, args: (args[0] * gate,)))

    def norm_of_kept(name: str, gate: Tensor) -> None:
        module = model.get_submodule(name)
        handles.append(
            module.register_forward_hook(lambda m, args, out: kept_norm(m, args[0], gate != 0))
        )

    def gated_norm(name: str) -> None:
        norm_of_kept(name, hidden)
        scale_output(name, hidden)

    scale_output(places.embedding, hidden)
    gated_norm(places.final_norm)
    for number in range(shape.layers):
        layer = f"{places.layers}.{number}."
        scale = gates[Axis.LAYER][number] if Axis.LAYER in gates else 1.0
        for name in places.norms:
            gated_norm(layer + name)
        for name in places.writers:
            norm_of_kept(layer + name, hidden)
        for name in places.writers or (places.attention, places.mlp):
            scale_output(layer + name, hidden * scale)
        heads, groups = head_gates(specimen.table, gates, number)
        if places.head_norms:
            norm_of_kept(layer + "self_attn.q_norm", heads)
            norm_of_kept(layer + "self_attn.k_norm", groups)
        scale_input(layer + places.attention, heads)
        if Axis.INTERMEDIATE in gates:
            scale_input(layer + places.mlp, gates[Axis.INTERMEDIATE][number])
    try:
        with torch.no_grad():
            return model(specimen.tokens).logits
    finally:
        for handle in handles:
            handle.remove()


def head_gates(table: CouplingTable, gates: Gates, layer: int) -> tuple[Tensor, Tensor]:
    """The gates of a layer's query heads and of its key-value heads, for each entry of a head."""
    shape = table.source
    groups = shape.kv_groups if table.grouped else 1
    group, head = torch.ones(groups).double(), torch.ones(shape.heads // groups).double()
    if Axis.KV_GROUP in gates:
        group = gates[Axis.KV_GROUP][layer]
    if Axis.HEAD in gates:
        head = gates[Axis.HEAD][layer]
    entries = torch.ones(shape.head_dim).double()
    query = torch.einsum("g,h,d->ghd", group, head, entries).flatten()
    return query, torch.einsum("g,d->gd", group, entries).flatten() if table.grouped else query


def kept_norm(module: nn.Module, x: Tensor, kept: Tensor) -> Tensor:
    """A norm over the kept dimensions; 0 elsewhere."""
    kept = kept.nonzero().squeeze(-1)
    some, weight = x[..., kept], module.weight[kept]
    if isinstance(module, nn.LayerNorm):
        some = some - some.mean(-1, keepdim=True)
        epsilon = module.eps
    else:
        weight, epsilon = weight + module.offset, module.variance_epsilon
    some = some / (some.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight
    if isinstance(module, nn.LayerNorm):
        some = some + module.bias[kept]
    return torch.zeros_like(x).index_copy(-1, kept, some)
