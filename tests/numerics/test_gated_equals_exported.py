"""The central promise: the gated model and the exported model compute the same function."""

import pytest
import torch
from equivalence import (
    Specimen,
    check_expected_count,
    check_gated_equals_exported,
    check_gates_act_on_activations,
    check_names_and_sizes,
    subsets,
    target_shape,
)
from models_zoo import MULTIPLIERS, build, extras, missing_families, variants

from llmshearing.huggingface.stock import stock_model
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.pruning.masks import Masks, PruningSettings


@pytest.fixture(scope="module", params=variants(), ids=str)
def specimen(request):
    return Specimen(request.param)


@pytest.fixture(scope="module", params=extras(), ids=str)
def extra(request):
    return Specimen(request.param)


def test_every_registered_family_is_in_the_zoo():
    assert not missing_families(), (
        f"tests/models_zoo.py has no entry for {', '.join(missing_families())}: add one to ZOO, "
        "with the config of each kind of attention (mha, gqa), the places where gates act in the "
        "stock model, and a variant for each option that changes the table or the computation"
    )


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_gated_equals_exported_on_every_subset_of_axes(specimen, hard):
    for axes in subsets(specimen.table):
        check_gated_equals_exported(specimen, specimen.table, axes, hard=hard)
    state = specimen.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in specimen.weights.items())


def test_expected_count_at_hard_gates_is_the_exported_count(specimen):
    for axes in subsets(specimen.table):
        check_expected_count(specimen, specimen.table, axes)


def test_only_the_axes_of_a_subset_are_masked(specimen):
    for axes in subsets(specimen.table):
        masks = Masks(specimen.table, target_shape(specimen.table, axes), PruningSettings(), seed=0)
        assert masks.axes == axes


def test_gates_act_on_the_activations_that_the_zoo_names(specimen):
    *_, every = subsets(specimen.table)
    check_gates_act_on_activations(specimen, specimen.table, every)


def test_table_names_every_parameter_with_its_size(specimen):
    check_names_and_sizes(specimen, specimen.table)


def test_options_of_a_family_keep_all_equalities(extra):
    *_, every = subsets(extra.table)
    check_names_and_sizes(extra, extra.table)
    check_gates_act_on_activations(extra, extra.table, every)
    check_expected_count(extra, extra.table, every)
    for hard in (False, True):
        check_gated_equals_exported(extra, extra.table, every, hard=hard)


# Options that change no tensor, each with the value that has no effect.
PLAIN = {
    "rope_scaling": None,
    "layer_types": ["full_attention"] * 3,
    "sliding_window": None,
    "use_parallel_residual": True,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": 256,
    "no_rope_layers": [1, 1, 1],
    **dict.fromkeys(MULTIPLIERS, 1.0),
}


def options(variant):
    """The options of a variant; layers without windows do not read the size of the window."""
    found = PLAIN.keys() & variant.config.keys()
    return sorted(found - {"sliding_window"} if "layer_types" in found else found)


@pytest.mark.parametrize("variant", [v for v in [*variants(), *extras()] if options(v)], ids=str)
def test_options_change_the_computation(variant):
    """Otherwise the other tests would not test the option at all."""
    model, _ = build(variant)
    tokens = torch.arange(22).reshape(2, 11)
    for name in options(variant):
        other = stock_model(variant.stock_config(**{name: PLAIN[name]})).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            difference = other(tokens).logits - model(tokens).logits
        assert difference.abs().max() > 1e-3, name


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_gates_of_1_change_no_bit_of_an_rms_norm_in_bfloat16(variant):
    """The gated norm multiplies and rounds in the order of the stock norm."""
    model, table = build(variant)
    model.bfloat16()
    given = {}
    for name in {row.module.format(layer=1) for row in table.rows if row.is_norm}:
        module = model.get_submodule(name)
        if not isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda m, a, out: given.update({m: (a[0], out)}))
    with torch.no_grad():
        model(torch.arange(22).reshape(2, 11))
        sizes = table.sizes(table.source)
        ones = {a: torch.ones((3, n) if a.per_layer else n) for a, n in sizes.items()}
        set_gates(insert_gates(model, table), table, ones)
        for module, (x, stock) in given.items():
            assert torch.equal(module(x), stock)


@pytest.mark.parametrize("variant", [*variants(), *extras()], ids=str)
def test_ungated_logits_equal_the_stock_model_to_the_bit(variant):
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
        assert torch.allclose(model(tokens).logits, stock, atol=1e-4)
        set_gates(sites, table, {})
        assert torch.equal(model(tokens).logits, stock)
