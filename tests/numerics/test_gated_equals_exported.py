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
from models_zoo import build, extras, missing_families, variants

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


def test_options_change_the_computation(extra):
    """Otherwise the other tests would not test the option at all."""
    fields = extra.variant.config
    changed = {"rope_scaling", "sliding_window", "use_parallel_residual"} & fields.keys()
    for name in changed:
        plain = extra.variant.stock_config(**{name: {"use_parallel_residual": True}.get(name)})
        other = type(extra.model)(plain).double().eval()
        other.load_state_dict(extra.weights)
        with torch.no_grad():
            difference = other(extra.tokens).logits - extra.model(extra.tokens).logits
        assert difference.abs().max() > 1e-3


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
