"""The central promise: the gated model and the exported model compute the same function."""

import itertools
from dataclasses import replace

import pytest
import torch
from models_zoo import COMMON, build, variants
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import expected_parameter_count
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.pruning.selection import keep_only, select
from llmshearing.pruning.surgery import cut_model

SMALL = {
    Axis.HIDDEN: 14,
    Axis.LAYER: 2,
    Axis.HEAD: 1,
    Axis.KV_GROUP: 1,
    Axis.INTERMEDIATE: 9,
}


def subsets(table):
    axes = list(table.sizes(table.source))
    for count in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, count)


def target_shape(table, axes) -> Shape:
    sizes = table.sizes(table.source) | {axis: SMALL[axis] for axis in axes}
    groups = sizes.get(Axis.KV_GROUP)
    heads = sizes[Axis.HEAD] * (groups or 1)
    return replace(
        table.source,
        hidden=sizes[Axis.HIDDEN],
        layers=sizes[Axis.LAYER],
        heads=heads,
        kv_groups=groups or heads,
        intermediate=sizes[Axis.INTERMEDIATE],
    )


def draw_gates(table, axes, target, generator, hard):
    """Random gates with zeros where `select` drops a unit, as in evaluation."""
    sizes, layers = table.sizes(table.source), table.source.layers
    shapes = {a: (layers, sizes[a]) if a.per_layer else (sizes[a],) for a in axes}
    values = {
        a: 0.2 + 0.8 * torch.rand(s, generator=generator, dtype=torch.float64)
        for a, s in shapes.items()
    }
    kept = select(values, table.sizes(target))
    gates = {a: torch.ones_like(v) for a, v in values.items()} if hard else values
    return keep_only(gates, kept), kept


def exported(model, table, target, kept, gates):
    """The exported tensors in a stock model whose norms may compute in float64."""
    family = family_of(model.config.to_dict())
    fields = model.config.to_dict() | family.write_shape(target)
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).double().eval()
    source = model.state_dict()
    tensors = dict(cut_model(table, kept, gates, source.__getitem__))
    missing, unexpected = small.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= set(small._tied_weights_keys or ())
    small.tie_weights()
    insert_gates(small, family.table(small.config.to_dict()))
    return small


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_gated_equals_exported_on_every_subset_of_axes(variant, hard):
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, COMMON["vocab_size"], (2, 11), generator=generator)
    model, table = build(variant)
    model.double()
    source = {k: v.clone() for k, v in model.state_dict().items()}
    sites = insert_gates(model, table)
    for axes in subsets(table):
        target = target_shape(table, axes)
        gates, kept = draw_gates(table, axes, target, generator, hard)
        set_gates(sites, table, gates)
        with torch.no_grad():
            gated = model(tokens).logits
            small = exported(model, table, target, kept, gates)
            difference = (gated - small(tokens).logits).abs().max().item()
        assert difference < 1e-10, (axes, difference)
        assert gated.abs().max() > 1e-2
        unique = {p.data_ptr(): p.numel() for p in small.parameters()}
        assert sum(unique.values()) == table.parameter_count(target), axes
    assert all(torch.equal(source[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_expected_count_at_hard_gates_is_the_exported_count(variant):
    _, table = build(variant)
    generator = torch.Generator().manual_seed(3)
    for axes in subsets(table):
        target = target_shape(table, axes)
        gates, _ = draw_gates(table, axes, target, generator, hard=True)
        sizes = table.sizes(table.source)
        expected = {
            a: gates[a].sum(-1) if a in gates else torch.tensor(float(n), dtype=torch.float64)
            for a, n in sizes.items()
        }
        layers = gates.get(Axis.LAYER, torch.ones(table.source.layers, dtype=torch.float64))
        count = expected_parameter_count(table.rows, expected, layers)
        assert count.item() == table.parameter_count(target)


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_ungated_logits_are_stock_to_the_bit(variant):
    model, table = build(variant)
    tokens = torch.arange(22).reshape(2, 11)
    with torch.no_grad():
        stock = model(tokens).logits
        keys = list(model.state_dict())
        sites = insert_gates(model, table)
        assert torch.equal(model(tokens).logits, stock)
        assert list(model.state_dict()) == keys
        ones = {
            a: torch.ones((table.source.layers, n) if a.per_layer else n)
            for a, n in table.sizes(table.source).items()
        }
        set_gates(sites, table, ones)
        assert torch.allclose(model(tokens).logits, stock, atol=1e-5)
        set_gates(sites, table, {})
        assert torch.equal(model(tokens).logits, stock)


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_table_names_every_parameter_with_its_size(variant):
    model, table = build(variant)
    assert table.tensor_shapes(table.source) == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }
