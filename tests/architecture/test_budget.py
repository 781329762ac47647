"""Budgets of parameters: the shapes within them, and budgets that are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget, shape_within
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import sized
from llmshearing.architecture.target import TargetSettings, resolve_target

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
TABLE = family_of(CONFIG).table(CONFIG)
SOURCE = TABLE.parameter_count(TABLE.source)
AXES = tuple(TABLE.sizes(TABLE.source))


@given(
    share=st.floats(0.15, 0.95),
    wishes=st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5),
    step=st.sampled_from([1, 8]),
)
def test_a_shape_is_within_its_budget_and_its_divisors(share, wishes, step):
    sizes = TABLE.sizes(TABLE.source)
    expected = {axis: wish * sizes[axis] for axis, wish in zip(AXES, wishes, strict=True)}
    budget = Budget(round(share * SOURCE), AXES, {Axis.INTERMEDIATE: step, Axis.HIDDEN: step})
    shape = shape_within(TABLE, budget, expected)
    assert TABLE.parameter_count(shape) <= budget.parameters
    assert shape.hidden % step == shape.intermediate % step == 0
    assert shape.heads % shape.kv_groups == 0
    found = TABLE.sizes(shape)
    for axis, size in found.items():
        assert 1 <= size <= sizes[axis]
        # No axis could take another step: it is full, beyond its wish, or the budget is.
        one = budget.step(axis)
        larger = sized(TABLE.source, {**found, axis: size + one}, grouped=True)
        assert (
            size + one > sizes[axis]
            or size / expected[axis] >= 1 + one / expected[axis]
            or TABLE.parameter_count(larger) > budget.parameters
        )


def test_expected_sizes_that_fit_the_budget_are_kept():
    expected = {a: float(n) for a, n in TABLE.sizes(TABLE.source).items()}
    expected |= {Axis.HIDDEN: 128.2, Axis.LAYER: 5.9, Axis.INTERMEDIATE: 344.4}
    want = {**expected, Axis.HIDDEN: 128, Axis.LAYER: 6, Axis.INTERMEDIATE: 344}
    shape = sized(TABLE.source, {a: int(n) for a, n in want.items()}, grouped=True)
    budget = Budget(TABLE.parameter_count(shape), AXES)
    assert shape_within(TABLE, budget, expected) == shape


def test_only_the_named_axes_shrink():
    settings = TargetSettings(parameters="4M", axes=["intermediate", "layer"])
    budget, errors = resolve_target(TABLE, settings)
    assert not errors
    sizes = {axis: float(n) for axis, n in TABLE.sizes(TABLE.source).items()}
    shape = shape_within(TABLE, budget, sizes)
    assert (shape.hidden, shape.heads, shape.kv_groups) == (256, 8, 4)
    assert TABLE.parameter_count(shape) <= 4_000_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": "9B"}, "the source has"),
        ({"parameters": "1K"}, "the smallest model that these axes allow has"),
        ({"parameters": "4M", "hidden": 128}, "found sizes as well (hidden)"),
        ({"hidden": 128, "axes": ["hidden"]}, "only valid with target.parameters"),
        ({"parameters": "4M", "multiple_of": {"heads": 4}}, "give target.multiple_of.kv_groups"),
        ({"parameters": "4M", "multiple_of": {"hidden": 512}}, "found 512 for hidden, but the"),
    ],
)
def test_an_impossible_budget_is_refused(settings, message):
    _, errors = resolve_target(TABLE, TargetSettings(**settings))
    assert message in errors[0]


def test_a_budget_for_a_family_that_ties_hidden_to_heads_is_refused():
    config = {**CONFIG, "model_type": "gpt_neox"}
    table = family_of(config).table(config)
    _, (error,) = resolve_target(table, TargetSettings(parameters="2M"))
    assert "give target.hidden and target.heads instead" in error


def test_the_axis_that_exceeds_its_expected_size_most_gives_way_first():
    sizes = TABLE.sizes(TABLE.source)
    expected = {axis: float(size) for axis, size in sizes.items()} | {Axis.LAYER: 4.4}
    smaller = sized(TABLE.source, {**sizes, Axis.LAYER: 4}, grouped=True)
    budget = Budget(TABLE.parameter_count(smaller) - 1, (Axis.LAYER, Axis.INTERMEDIATE))
    # Rounding leaves 4 layers, below the wish of 4.4, so the intermediate size gives way.
    found = shape_within(TABLE, budget, expected)
    assert (found.layers, found.intermediate) == (4, TABLE.source.intermediate - 1)
