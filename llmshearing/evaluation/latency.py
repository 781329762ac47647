"""Time from one token to the next of shapes that do not exist yet, from timed decoder blocks."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llmshearing.architecture.shape import Shape
from llmshearing.architecture.target import SIZES, ServingSettings
from llmshearing.evaluation.throughput import generate, now
from llmshearing.export.directory import target_fields
from llmshearing.huggingface.source import Source
from llmshearing.huggingface.stock import stock_config, stock_model
from llmshearing.models.blocks import decoder_blocks

REPEATS = 3
TIMED_TOKENS = 17  # the first one is the prompt's


@dataclass(frozen=True)
class BlockTimes:
    """Predicts milliseconds per token: layers times a block, and the rest of the model.

    The time of a block is that of the largest block with its hidden size, plus the differences that
    a smaller attention and a smaller MLP make. Blocks are timed inside a whole model, so that their
    weights come from memory as they do in use.
    """

    # of a timed shape, milliseconds of a block and of the rest per token
    times: Mapping[Shape, tuple[float, float]]
    # the largest shape; timed shapes differ from it by hidden size and one other part
    largest: Shape

    def __call__(self, shape: Shape) -> float:
        """Milliseconds from one token to the next of a shape of the grid."""
        whole, *others = _timed_for(shape, self.largest)
        block, rest = self.times[whole]
        change = sum(self.times[one][0] - block for one in others)
        return rest + shape.layers * (block + change)


def largest_of(shapes: Sequence[Shape]) -> Shape:
    """The shape with the largest of each size; it need not be one of them."""
    return replace(shapes[0], **{n: max(getattr(shape, n) for shape in shapes) for n in SIZES})


def shapes_to_time(shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes whose blocks have to be timed to predict all of `shapes`."""
    largest = largest_of(shapes)
    return list(dict.fromkeys(one for shape in shapes for one in _timed_for(shape, largest)))


def _timed_for(shape: Shape, largest: Shape) -> tuple[Shape, Shape, Shape]:
    """The largest block of a shape's hidden size, and it with the shape's attention or MLP."""
    whole = replace(largest, hidden=shape.hidden)
    attention = replace(whole, heads=shape.heads, kv_groups=shape.kv_groups)
    return whole, attention, replace(whole, intermediate=shape.intermediate)


def time_blocks(
    source: Source, shape: Shape, serving: ServingSettings, device: torch.device
) -> tuple[float, float]:
    """Milliseconds per token of one block, and of everything else, in a model of a shape.

    The weights are random. Generation is timed in the middle of the new tokens, where its KV cache
    has its mean length.
    """
    config = stock_config(target_fields(source.config, shape, {}))
    with device:
        model = stock_model(config, dtype=getattr(torch, serving.dtype)).eval()
    blocks, stamps = decoder_blocks(model), _Stamps(model)
    prompt = max(1, serving.prompt + (serving.new_tokens - TIMED_TOKENS) // 2)
    found = []
    for repeat in range(REPEATS + 1):
        stamps.seconds = 0.0
        stamps.paused = True  # during the prompt
        _, total = generate(model, serving.batch, prompt, TIMED_TOKENS, stamps.resume)
        if repeat > 0:
            tokens = TIMED_TOKENS - 1
            within = 1e3 * stamps.seconds / tokens
            found.append((within / len(blocks), 1e3 * total / tokens - within))
    block, rest = (statistics.median(part) for part in zip(*found, strict=True))
    return block, rest


class _Stamps:
    """Adds up the time in a model's blocks."""

    def __init__(self, model: Any) -> None:
        self.seconds, self.paused, self._begun = 0.0, False, 0.0
        self._model = model
        for block in decoder_blocks(model):
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def resume(self) -> None:
        """Count from here."""
        self.paused = False

    def _enter(self, _: nn.Module, __: Any) -> None:
        if not self.paused:
            self._begun = now(self._model)

    def _leave(self, _: nn.Module, __: Any, ___: Any) -> None:
        if not self.paused:
            self.seconds += now(self._model) - self._begun
