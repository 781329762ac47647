"""The decoder blocks are those that the family names."""

import pytest
from models_zoo import build, variants
from torch import nn

from llmshearing.architecture.families import family_of
from llmshearing.models.blocks import decoder_blocks
from llmshearing.models.shearing import ShearingModel


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_a_family_names_its_decoder_blocks(variant):
    decoder, table = build(variant)
    named = family_of({"model_type": variant.family}).blocks
    # A list that is longer than that of the blocks.
    decoder.base_model.adapters = nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])
    ShearingModel(decoder, masks=None, domains=1)
    assert decoder_blocks(decoder) is decoder.get_submodule(named)
    assert len(decoder_blocks(decoder)) == table.source.layers
    assert all(row.name.startswith(f"{named}.{{layer}}.") for row in table.rows if row.per_layer)
    wrapped = {module for module in decoder.modules() if decoder.fsdp_wrap_fn(module)}
    assert wrapped == set(decoder_blocks(decoder))
