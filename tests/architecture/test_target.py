"""Targets resolved against their source, and targets that are refused."""

from dataclasses import replace

import pytest

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import TargetSettings, resolve_target
from llmshearing.errors import UserError
from llmshearing.typed_yaml import build


def table(shape: Shape, **options) -> CouplingTable:
    return CouplingTable((), shape, grouped=shape.heads != shape.kv_groups, **options)


MULTI_HEAD = table(Shape(256, 8, 8, 8, 32, 688, 4096))
GROUPED = table(Shape(256, 8, 8, 2, 32, 688, 4096))
IMPLIED = table(MULTI_HEAD.source, implied_head_size=True)


MULTI_QUERY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}


@pytest.fixture
def multi_query():
    return family_of(MULTI_QUERY).table(MULTI_QUERY)


def test_a_budget_masks_only_axes_that_can_shrink(multi_query):
    settings = TargetSettings(parameters="80K", multiple_of={"intermediate": 96})
    budget, errors = resolve_target(multi_query, settings)
    assert not errors
    assert {axis.value for axis in budget.axes} == {"hidden", "layer", "head"}


def test_a_budget_that_no_cut_meets_is_refused(multi_query):
    whole = multi_query.parameter_count(multi_query.source)
    for parameters, message in (
        (whole, f"found {whole:,}, but the source has {whole:,}; give fewer"),
        (1, "found 1, but the smallest model that these axes allow has"),
    ):
        _, (error,) = resolve_target(multi_query, TargetSettings(parameters=parameters))
        assert message in error
    assert not resolve_target(multi_query, TargetSettings(parameters=whole - 1))[1]


@pytest.mark.parametrize(
    ("source", "settings", "changes"),
    [
        (MULTI_HEAD, {"heads": 4}, {"heads": 4, "kv_groups": 4}),
        (MULTI_HEAD, {"intermediate": 344}, {"intermediate": 344}),
        (MULTI_HEAD, {"layers": 6, "hidden": 100}, {"layers": 6, "hidden": 100}),
        (GROUPED, {"heads": 4}, {"heads": 4}),
        (GROUPED, {"heads": 4, "kv_groups": 1}, {"heads": 4, "kv_groups": 1}),
        (GROUPED, {"heads": 2, "kv_groups": 1}, {"heads": 2, "kv_groups": 1}),
        (IMPLIED, {"layers": 4, "intermediate": 64}, {"layers": 4, "intermediate": 64}),
        (IMPLIED, {"heads": 4, "hidden": 128}, {"heads": 4, "kv_groups": 4, "hidden": 128}),
    ],
    ids=["heads", "intermediate", "layers and hidden", "heads within groups", "groups",
         "groups and heads within them", "implied: others", "implied: both"],
)  # fmt: skip
def test_sizes_that_are_not_given_stay(source, settings, changes):
    target, errors = resolve_target(source, TargetSettings(**settings))
    assert not errors
    assert target == replace(source.source, **changes)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (MULTI_HEAD, {"hidden": 300}, "target.hidden: found 300, but the source has 256"),
        (MULTI_HEAD, {"layers": 9}, "target.layers: found 9, but the source has 8"),
        (MULTI_HEAD, {"heads": 9}, "target.heads: found 9, but the source has 8"),
        (MULTI_HEAD, {"intermediate": 999}, "target.intermediate: found 999, but the source has"),
        (GROUPED, {"kv_groups": 4}, "target.kv_groups: found 4, but the source has 2"),
        (MULTI_HEAD, {"heads": 4, "kv_groups": 2}, "target.kv_groups: found 2 with 4 heads"),
        (GROUPED, {"heads": 5}, "5 heads do not divide into 2 KV groups"),
        (GROUPED, {"heads": 8, "kv_groups": 1}, "are 8 per group, but the source has only 4"),
        (GROUPED, {"kv_groups": 1}, "give at most 4 heads, or more KV groups"),
        (MULTI_HEAD, {}, "nothing to prune"),
    ],
)
def test_a_target_out_of_reach_is_refused(source, settings, message):
    _, errors = resolve_target(source, TargetSettings(**settings))
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"intermediate": 64}, "target.intermediate: found 100, which is not a multiple of 64 as "
         "target.multiple_of.intermediate asks; give 64 or 128"),
        ({"hidden": 512}, "found 256, which is not a multiple of 512 as target.multiple_of.hidden "
         "asks; give 512"),
    ],
)  # fmt: skip
def test_a_size_that_breaks_a_divisor_rule_is_refused(rules, message):
    settings = TargetSettings(intermediate=100, multiple_of=rules)
    _, errors = resolve_target(MULTI_HEAD, settings)
    assert len(errors) == 1
    assert message in errors[0]


def test_sizes_that_keep_the_divisor_rules_pass():
    rules = {"hidden": 64, "layers": 2, "heads": 2, "kv_groups": 2, "intermediate": 8}
    settings = TargetSettings(hidden=128, layers=4, heads=4, intermediate=344, multiple_of=rules)
    assert resolve_target(MULTI_HEAD, settings)[1] == []


@pytest.mark.parametrize("settings", [{"heads": 4}, {"hidden": 128}, {"heads": 4, "hidden": 160}])
def test_a_target_with_a_wrong_implied_head_size_is_refused(settings):
    """GPT-NeoX has no field for the head size: fewer heads alone would change it."""
    _, errors = resolve_target(IMPLIED, TargetSettings(**settings))
    assert len(errors) == 1
    assert "derives the head size as hidden / heads" in errors[0]
    assert not resolve_target(MULTI_HEAD, TargetSettings(**settings))[1]


def test_the_refusal_of_head_only_pruning_names_valid_sizes():
    _, (error,) = resolve_target(IMPLIED, TargetSettings(heads=4))
    assert error == (
        "target: found hidden 256 with 4 heads of size 32, but this family's config derives the "
        "head size as hidden / heads, which would be 64; give hidden = 128 for 4 heads, or "
        "8 heads with hidden = 256"
    )


def test_no_config_with_a_wrong_implied_head_size_is_written():
    shape = replace(IMPLIED.source, heads=4, kv_groups=4)
    with pytest.raises(UserError, match="derives the head size"):
        family_of({"model_type": "gpt_neox"}).write_shape(shape)


def test_a_target_whose_heads_must_divide_hidden_is_refused_with_the_nearest_sizes():
    divided = replace(MULTI_HEAD, heads_divide_hidden=True)
    _, (error,) = resolve_target(divided, TargetSettings(heads=6))
    assert error == (
        "target: found hidden 256 with 6 heads, but Transformers loads no such model of this "
        "family: the heads must divide the hidden size; give hidden = 252 or 258 for 6 heads"
    )
    assert resolve_target(divided, TargetSettings(heads=4))[1] == []
    assert resolve_target(MULTI_HEAD, TargetSettings(heads=6))[1] == []
    _, (error,) = resolve_target(divided, TargetSettings(parameters="1M"))
    assert "ties the hidden size to the heads" in error


def test_a_llama_shape_that_transformers_5_refuses_is_written_as_mistral():
    llama = family_of({"model_type": "llama"})
    shape = replace(MULTI_HEAD.source, heads=6, kv_groups=6)
    assert "model_type" not in llama.write_shape(MULTI_HEAD.source)
    assert llama.write_shape(shape).items() >= {"model_type": "mistral", "head_dim": 32}.items()
    for bias in ("attention_bias", "mlp_bias"):
        config = {"model_type": "llama", bias: True, **llama.write_shape(MULTI_HEAD.source)}
        assert llama.table(config).heads_divide_hidden


def test_all_errors_of_a_target_are_reported():
    _, errors = resolve_target(MULTI_HEAD, TargetSettings(hidden=999, layers=9, intermediate=9999))
    assert len(errors) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": 0}, "layers: found 0, expected 1 or more"),
        ({"hidden": 1.5}, "hidden: found 1.5, expected a whole number"),
        ({"multiple_of": {"layers": 0}}, "multiple_of.layers: found 0, expected 1 or more"),
        ({"multiple_of": {"hiden": 64}}, "multiple_of.hiden: found 'hiden', expected 'hidden', "),
        ({"axes": ["width"]}, "axes.0: found 'width', expected 'hidden', 'layer', "),
        ({"parameters": "many"}, "parameters: found 'many', expected a number such as 1.3B"),
        ({"parameters": -1}, "parameters: found -1, expected a number such as 1.3B"),
    ],
)
def test_invalid_values_of_a_target_are_refused(given, message):
    _, errors = build(TargetSettings, given)
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_an_axis_that_the_family_does_not_have_is_refused():
    _, (error,) = resolve_target(MULTI_HEAD, TargetSettings(parameters="80K", axes=["kv_group"]))
    assert error.startswith("target.axes: unknown kv_group, expected some of hidden, layer, head")
