"""The shapes that a search may choose from, and the budgets that they have to keep."""

import itertools

import pytest

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import axis_sizes
from llmshearing.architecture.space import evenly, largest_shapes, memory_bytes, resolve_space
from llmshearing.architecture.target import ServingSettings, TargetSettings, resolve_target

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
GROUPED = family_of(LLAMA).table(LLAMA)
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "tie_word_embeddings": False,
    "attention_bias": True,
}
IMPLIED = family_of(NEOX).table(NEOX)
HALF = GROUPED.parameter_count(GROUPED.source) // 2


def space_of(table=GROUPED, values_per_axis=5, **settings):
    found, errors = resolve_space(table, TargetSettings(**settings), values_per_axis)
    assert errors == []
    return found


def test_the_grid_has_every_combination_of_multiples_between_the_limits():
    found = space_of(
        values_per_axis=99,
        parameters=HALF,
        multiple_of={"hidden": 64, "intermediate": 86},
        minimum={"hidden": 100, "layers": 7},
        maximum={"hidden": 200, "intermediate": 400},
    )
    assert found.values[Axis.HIDDEN] == (128, 192)
    assert found.values[Axis.LAYER] == (7, 8)
    assert found.values[Axis.INTERMEDIATE] == (172, 258, 344)
    assert len(set(found.grid)) == len(found.grid) == 2 * 2 * 3 * 4 * 2


def test_values_are_thinned_evenly_and_keep_both_ends():
    found = space_of(parameters=HALF, values_per_axis=4)
    assert found.values[Axis.INTERMEDIATE] == (176, 352, 512, 688)
    assert all(len(values) <= 4 for values in found.values.values())
    assert evenly(range(10), 3) == [0, 4, 9]


def test_heads_are_limited_as_heads_per_layer_under_grouped_attention():
    limits = {"minimum": {"heads": 4}, "maximum": {"heads": 6}, "multiple_of": {"heads": 2}}
    found = space_of(parameters=HALF, **limits)
    assert {shape.heads for shape in found.grid} == {4, 6}


def test_given_sizes_and_axes_that_are_not_named_stay():
    found = space_of(parameters=HALF, layers=6, axes=["hidden", "intermediate"])
    assert {(s.layers, s.heads, s.kv_groups) for s in found.grid} == {(6, 8, 4)}
    assert len({shape.hidden for shape in found.grid}) > 1


def test_a_family_with_an_implied_head_size_gets_shapes_that_its_config_can_hold():
    found = space_of(IMPLIED, parameters=IMPLIED.parameter_count(IMPLIED.source) // 2)
    assert found.grid
    assert all(shape.hidden == shape.heads * shape.head_dim for shape in found.grid)


def test_shapes_keep_all_budgets_at_once():
    serving = ServingSettings(batch=2, context=100, dtype="float16")
    cache = 2 * 8 * 4 * 32 * 2 * 100  # keys and values
    source = GROUPED.parameter_count(GROUPED.source)
    assert memory_bytes(GROUPED, GROUPED.source, serving) == 2 * (source + cache)
    found = space_of(parameters=HALF, memory=str(source), latency="9tok/s", serving=serving)
    assert found.milliseconds == pytest.approx(2000 / 9)

    def milliseconds(shape):
        return 60.0 * shape.layers

    inside = found.within(GROUPED, milliseconds)
    assert inside
    kept = [
        GROUPED.parameter_count(shape) <= HALF
        and memory_bytes(GROUPED, shape, serving) <= source
        and shape.layers <= 3
        for shape in found.grid
    ]
    assert inside == list(itertools.compress(found.grid, kept))


def test_largest_shapes_are_those_that_no_other_contains():
    inside = space_of(parameters=HALF).within(GROUPED)
    largest = largest_shapes(GROUPED, inside)
    sizes = {shape: tuple(axis_sizes(shape, grouped=True).values()) for shape in inside}
    for shape in inside:
        contained = any(
            other != shape and all(a <= b for a, b in zip(sizes[shape], sizes[other], strict=True))
            for other in inside
        )
        assert contained != (shape in largest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "target: found no budget"),
        ({"parameters": "1B"}, "target.parameters: found 1,000,000,000, but the source has"),
        ({"parameters": "10K"}, "target.parameters: found 10,000, but the smallest shape"),
        ({"memory": "1KiB"}, "target.memory: found 1,024, but the smallest shape"),
        ({"parameters": HALF, "hidden": 300}, "target.hidden: found 300, expected at most the so"),
        ({"parameters": HALF, "maximum": {"layers": 9}}, "target.maximum.layers: found 9"),
        ({"parameters": HALF, "minimum": {"layers": 6}, "maximum": {"layers": 5}}, "at most targ"),
        ({"parameters": HALF, "axes": ["hiden"]}, "target.axes"),
        ({"parameters": HALF, "heads": 7, "kv_groups": 4}, "no shape smaller than the source"),
    ],
)
def test_a_space_without_shapes_is_refused(settings, message):
    if settings.get("axes"):
        settings = TargetSettings.model_construct(**settings, multiple_of={})
    else:
        settings = TargetSettings(**{k: str(v) if v is HALF else v for k, v in settings.items()})
    _, errors = resolve_space(GROUPED, settings, 5)
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    "settings",
    [{"memory": "1MB"}, {"latency": "5ms"}, {"minimum": {"layers": 2}, "parameters": "1M"}],
)
def test_learned_masks_refuse_what_only_a_search_supports(settings):
    _, (error,) = resolve_target(GROUPED, TargetSettings(**settings))
    assert "llmshearing search" in error
