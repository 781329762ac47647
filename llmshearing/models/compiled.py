"""torch.compile by block: one graph for each, without dynamic shapes."""

from __future__ import annotations

from typing import Any

import torch

from llmshearing.models.shearing import ShearingModel


def compile_blocks(model: ShearingModel, backend: str = "inductor") -> None:
    """Compile the forward of each decoder block; blocks of one shape share their code.

    Only `forward` is replaced, so that parameters keep their names, and the hooks of FSDP and of
    activation checkpointing stay outside of the graph. A graph break is an error.

    Args:
        model: before it is sharded.
        backend: of torch.compile.
    """
    for block in model.blocks():
        compiled: Any = torch.compile(block.forward, fullgraph=True, dynamic=False, backend=backend)
        block.forward = compiled
