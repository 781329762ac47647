"""Passes the trainer's clock to the masks."""

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.pruning.masks import Masks
from llmshearing.pruning.schedule import MaskSchedule


class MaskClock(Algorithm):
    """Sets the masks' state before each forward pass and clamps their logits after each step.

    With `noise_per_rank` each rank draws its own noise; otherwise all ranks draw the same.
    """

    def __init__(
        self, masks: Masks, schedule: MaskSchedule, *, noise_per_rank: bool = False
    ) -> None:
        self.masks, self.schedule, self.noise_per_rank = masks, schedule, noise_per_rank

    def match(self, event: Event, state: State) -> bool:
        """Before each training batch and evaluation, and after each optimizer step."""
        return event in (Event.BATCH_START, Event.EVAL_START, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the state of the current step, or clamp."""
        if event == Event.BATCH_END:
            self.masks.clamp_logits()
            return
        stream = dist.get_global_rank() if self.noise_per_rank else 0
        self.masks.set_state(self.schedule.at(state.timestamp.batch.value), stream)
