"""Reports to the watchdog what the trainer is doing, and logs how long the start took."""

import time

from composer.core import Callback, Event, State
from composer.loggers import Logger

from llmshearing.watchdog import Watchdog, log_phase

# What begins at an event. Composer runs its saver after all other callbacks.
ACTIVITIES = {
    Event.FIT_START: "the first batch",
    Event.BEFORE_DATALOADER: "the loading of step {step}",
    Event.BATCH_START: "step {step}",
    Event.BATCH_END: "the end of step {done}",
    Event.EVAL_BATCH_START: "the evaluation of {domain}, batch {batch}",
    Event.EVAL_AFTER_ALL: "the end of the evaluation at step {step}",
    Event.BATCH_CHECKPOINT: "the checkpoint at step {step}",
    Event.FIT_END: "the end of the run",
}


class Heartbeat(Callback):
    """Gives each step, evaluation batch and checkpoint its time limit in seconds.

    The first batch and the first step have the limit `start_timeout`, all else `step_timeout`.
    """

    def __init__(self, watchdog: Watchdog, start_timeout: float, step_timeout: float) -> None:
        self.watchdog, self.start_timeout, self.step_timeout = watchdog, start_timeout, step_timeout
        self.begun = time.monotonic()
        self.first_step = True

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Report what begins, and log how long the first batch and the first step took."""
        if self.first_step and event in (Event.BATCH_START, Event.BATCH_END):
            now = time.monotonic()
            log_phase(
                "first batch" if event == Event.BATCH_START else "first step", now - self.begun
            )
            self.begun = now
            self.first_step = event == Event.BATCH_START
        waits_for_first = event == Event.BEFORE_DATALOADER and self.first_step
        if event in ACTIVITIES and not waits_for_first:
            step, batch = state.timestamp.batch.value, state.eval_timestamp.batch.value
            about = {"step": step, "done": step - 1, "domain": state.dataloader_label}
            self.enter(ACTIVITIES[event].format(**about, batch=batch))
        if event == Event.FIT_START:
            self.begun = time.monotonic()

    def enter(self, what: str) -> None:
        """Report the current activity, as the message of a timeout names it."""
        self.watchdog.enter(what, self.start_timeout if self.first_step else self.step_timeout)
