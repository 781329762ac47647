"""Brings the trainer's clock to the masks."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from llmshearing.pruning.masks import Masks


class MaskClock(Algorithm):
    """Sets step and sparsity warmup before each forward; bounds the logits after each step.

    Args:
        masks: the run's masks.
        warmup_steps: steps over which the target moves from the source's to its own sizes.
        noise_stream: the rank, where every rank draws noise of its own, else 0.
    """

    def __init__(self, masks: Masks, warmup_steps: int, noise_stream: int = 0) -> None:
        self.masks, self.warmup_steps, self.noise_stream = masks, warmup_steps, noise_stream

    def match(self, event: Event, state: State) -> bool:
        """Before training batches and evaluations, and after each optimizer step."""
        del state
        return event in (Event.BATCH_START, Event.EVAL_START, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Hand over the time."""
        del logger
        if event == Event.BATCH_END:
            self.masks.clamp_logits()
            return
        step = state.timestamp.batch.value
        ramp = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        self.masks.set_progress(step, ramp, self.noise_stream)
