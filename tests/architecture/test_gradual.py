"""Shapes on the way to a target that is reached in several cuts."""

from dataclasses import replace
from itertools import pairwise

import pytest
from models_zoo import build, variants

from llmshearing.architecture.families import family_of
from llmshearing.architecture.gradual import first_cut, series
from llmshearing.architecture.shape import implied_head_size_error, sized

SMOLLM = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
TABLE = family_of(SMOLLM).table(SMOLLM)
TARGET = replace(TABLE.source, hidden=384, layers=20, heads=6, kv_groups=2, intermediate=1024)


def test_the_cuts_of_a_series_end_at_the_target_and_keep_at_least_half():
    shape, sizes = TABLE.source, [TABLE.parameter_count(TABLE.source)]
    for left in (3, 2, 1):
        table = family_of(SMOLLM).table(SMOLLM | family_of(SMOLLM).write_shape(shape))
        shape, errors = first_cut(table, TARGET, left)
        assert errors == []
        sizes.append(table.parameter_count(shape))
    assert shape == TARGET
    ratios = [after / before for before, after in pairwise(sizes)]
    assert all(0.5 <= ratio < 0.9 for ratio in ratios)


def test_sizes_on_the_way_keep_the_divisors_of_both_ends():
    shape, _ = first_cut(TABLE, TARGET, 2)
    assert (shape.hidden, shape.intermediate, shape.layers) == (448, 1280, 24)
    assert shape.heads % shape.kv_groups == 0


def test_a_cut_to_less_than_half_is_refused_with_the_number_to_give():
    _, (error,) = first_cut(TABLE, TARGET, 1)
    assert error.startswith("--cuts: found 1 from 134,515,008 to 50,347,392 parameters")
    assert error.endswith("give 2")
    assert first_cut(TABLE, TARGET, 2)[1] == []


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_every_family_can_hold_the_shapes_on_the_way(variant):
    _, table = build(variant)
    small = {axis: max(1, size // 2) for axis, size in table.sizes(table.source).items()}
    target = sized(table.source, small, grouped=table.grouped)
    if table.implied_head_size:
        target = replace(target, hidden=target.heads * target.head_dim)
    shape, _ = first_cut(table, target, 2)
    for axis, size in table.sizes(shape).items():
        assert table.sizes(target)[axis] <= size <= table.sizes(table.source)[axis], axis
    assert not (table.implied_head_size and implied_head_size_error(shape))


def test_a_series_whose_last_cut_would_be_too_large_is_refused_before_the_first():
    config = SMOLLM | {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688}
    config |= {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}
    table = family_of(config).table(config)
    target = replace(table.source, hidden=128, layers=6, heads=4, kv_groups=4, intermediate=344)
    counts = [table.parameter_count(shape) for shape in series(table, target, 2)]
    assert 2 * counts[1] >= counts[0]
    assert 2 * counts[2] < counts[1]
    assert first_cut(table, target, 2)[1][0].endswith("give 3")
