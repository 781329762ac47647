"""Planned activations are what a real forward saves, for every family and variant."""

from dataclasses import replace

import pytest
import torch
from models_zoo import COMMON, extras, variants

from llmshearing.architecture.families import family_of
from llmshearing.huggingface.stock import complete_fields, stock_model
from llmshearing.models.blocks import decoder_of
from llmshearing.models.shearing import ShearingModel
from llmshearing.planning.activations import Batch, activations, numbers_of
from llmshearing.planning.state import pruned_axes
from llmshearing.pruning.masks import Masks, PruningSettings

BATCH = Batch(rows=3, length=24)
LAYERS = 3


def saved_bytes(model, tokens, autocast):
    """Bytes that autograd saves in a forward of the decoder, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # kept alive, so that no address is used twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), hooks:
        hidden = decoder_of(model.model)(input_ids=tokens, use_cache=False)
    del hidden
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("pruned", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("how", ["float32", "autocast", "sharded"])
@pytest.mark.parametrize("variant", variants() + extras(), ids=str)
def test_planned_activations_are_what_a_forward_saves(variant, how, pruned):
    config = variant.stock_config(num_hidden_layers=LAYERS)
    decoder = stock_model(config).train()
    fields = complete_fields(config)
    table = family_of(fields).table(fields)
    target, masks = None, None
    if pruned:
        target = replace(table.source, hidden=12, layers=2, intermediate=8)
        masks = Masks(table, target, PruningSettings(), seed=0)
    model = ShearingModel(decoder, masks, domains=1)
    if how == "sharded":  # FSDP2 computes with bf16 copies of the parameters
        model.model.to(torch.bfloat16)
    tokens = torch.randint(0, COMMON["vocab_size"], (BATCH.rows, BATCH.length))
    if pruned:
        model({"input_ids": tokens, "labels": tokens, "domain": torch.zeros(3, dtype=torch.int64)})
        for site in model.sites:  # as leaves, so that the masks' own graph does not count
            for name in ("gate", "in_gate", "out_gate"):
                gate = getattr(site.module, name, None)
                if gate is not None:
                    setattr(site.module, name, gate.detach().requires_grad_())
    found = saved_bytes(model, tokens, how == "autocast")
    numbers = numbers_of("fp32" if how == "float32" else "amp_bf16", sharded=how == "sharded")
    planned = activations(fields, table, BATCH, numbers, pruned_axes(table, target))
    head = BATCH.tokens * table.source.hidden * numbers.compute  # what the output head reads
    total = LAYERS * planned.layer + planned.rest - head
    assert total == pytest.approx(found, rel=0.02)
    if not pruned:  # with masks, the gates that layers share are counted once per layer
        assert total == found
