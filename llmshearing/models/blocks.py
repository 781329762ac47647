"""The decoder blocks of a stock model, and their compilation."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llmshearing.architecture.families import family_of


def blocks_path(model: PreTrainedModel) -> str:
    """The name of the list of decoder blocks, from the model's family."""
    return family_of({"model_type": model.config.model_type}).blocks


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output head, which holds the blocks.

    Transformers' `get_decoder` returns the whole model for GPT-NeoX, and `base_model` for Gemma 3.
    """
    return model.get_submodule(blocks_path(model).rpartition(".")[0])


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks."""
    blocks = model.get_submodule(blocks_path(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def recompute_blocks(model: PreTrainedModel) -> None:
    """Keep the inputs of each decoder block alone; the backward pass computes the rest again."""
    stock: Any = model
    name = "activation_checkpointing_enable"  # its name in later versions of Transformers
    enable = getattr(stock, name, None) or stock.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compile_blocks(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile each decoder block as one graph with static shapes; a graph break is an error.

    Blocks of the same shape share their code. Only `forward` is replaced: parameters keep their
    names, and the hooks of FSDP and of activation checkpointing stay outside of the graph. The
    model, gated or not, is not sharded yet.
    """
    for block in decoder_blocks(model):
        compiled: Any = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
        block.forward = compiled
