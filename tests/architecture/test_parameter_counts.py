"""Parameter counts and shapes from coupling tables."""

from dataclasses import replace

import numpy as np
import pytest

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import derive_shape, expected_parameter_count
from llmshearing.architecture.families import all_families, family_of
from llmshearing.errors import UserError

LLAMA2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
# Paper, section 3.1, and the released code's 370M.
PUBLISHED = [
    (4096, 32, 32, 11008, 6_738_415_616),
    (2560, 20, 32, 6912, 2_701_560_320),
    (2048, 16, 24, 5504, 1_345_423_360),
    (1024, 8, 24, 2816, 373_867_520),
]


def llama(hidden, heads, layers, intermediate):
    table = family_of(LLAMA2_7B).table(LLAMA2_7B)
    shape = replace(
        table.source,
        hidden=hidden,
        heads=heads,
        kv_groups=heads,
        layers=layers,
        intermediate=intermediate,
    )
    return table, shape


@pytest.mark.parametrize(("hidden", "heads", "layers", "intermediate", "count"), PUBLISHED)
def test_published_shapes_have_their_published_counts(hidden, heads, layers, intermediate, count):
    table, shape = llama(hidden, heads, layers, intermediate)
    assert table.parameter_count(shape) == count
    sizes = table.sizes(shape)
    kept = np.zeros(32)
    kept[:layers] = 1
    assert expected_parameter_count(table.rows, sizes, kept) == count


def test_removing_a_row_changes_the_parameter_count():
    for family in all_families():
        config = {**LLAMA2_7B, "model_type": family, "num_key_value_heads": 8, "head_dim": 128}
        table = family_of(config).table(config)
        whole = table.parameter_count(table.source)
        for row in table.rows:
            rest = replace(table, rows=tuple(r for r in table.rows if r is not row))
            assert rest.parameter_count(table.source) < whole


def test_the_shape_is_derived_from_the_tensors_alone():
    config = {**LLAMA2_7B, "num_key_value_heads": 8}
    table = family_of(config).table(config)
    shape = replace(table.source, hidden=2048, heads=12, kv_groups=4, layers=20, intermediate=5504)
    tensors = table.tensor_shapes(shape)
    assert derive_shape(table, tensors) == shape
    name = "model.layers.3.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=name):
        derive_shape(table, tensors | {name: (5000, 2048)})


def test_axes_of_grouped_attention():
    config = {**LLAMA2_7B, "num_key_value_heads": 8}
    sizes = family_of(config).table(config).sizes(family_of(config).read_shape(config))
    assert sizes[Axis.KV_GROUP] == 8
    assert sizes[Axis.HEAD] == 4


def test_unknown_family_and_field_are_refused_by_name():
    with pytest.raises(UserError, match=r"found model_type 'opt', expected one of .*llama"):
        family_of({"model_type": "opt"})
    with pytest.raises(UserError, match="layer_types"):
        family_of(LLAMA2_7B).check_fields(LLAMA2_7B | {"layer_types": ["sliding_attention"]})
    with pytest.raises(UserError, match="pretraining_tp=2"):
        family_of(LLAMA2_7B).check_fields(LLAMA2_7B | {"pretraining_tp": 2})
