"""Operations per token, compared with those that torch counts."""

import pytest
import torch
from models_zoo import build, variants
from torch.utils.flop_counter import FlopCounterMode

from llmshearing.architecture.families import family_of
from llmshearing.architecture.flops import matrix_parameters, peak_flops, training_flops_per_token

LLAMA2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def test_counts_of_llama2_7b():
    table = family_of(LLAMA2_7B).table(LLAMA2_7B)
    # All parameters except the embedding and the 65 norms.
    assert matrix_parameters(table) == 6_738_415_616 - 32000 * 4096 - 65 * 4096
    assert training_flops_per_token(table, 4096) == (
        6 * matrix_parameters(table) + 12 * 32 * 4096 * 4096
    )


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_counted_operations_are_those_of_the_stock_model(variant):
    model, table = build(variant)
    ids = torch.zeros(1, 32, dtype=torch.long)
    model.config._attn_implementation = "eager"  # the counter sees its products
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    rotary = 2 * (table.source.head_dim // 2) * 32  # positions times frequencies, once
    assert counter.get_total_flops() == pytest.approx(
        32 * training_flops_per_token(table, 32), abs=2 * rotary
    )


def test_peaks_by_name():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A10G") == 70e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA GeForce RTX 4090") is None
