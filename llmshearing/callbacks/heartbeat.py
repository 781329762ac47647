"""Reports to the watchdog what the trainer is doing, and logs how long the start took."""

from __future__ import annotations

import time

from composer.core import Callback, State
from composer.loggers import Logger

from llmshearing.watchdog import Watchdog, log_phase


class Heartbeat(Callback):
    """Gives each step, evaluation batch and checkpoint its time limit.

    Args:
        watchdog: the watchdog of this rank.
        start_timeout: limit of the first batch and of the first step, in seconds.
        step_timeout: limit of everything later, in seconds.
    """

    def __init__(self, watchdog: Watchdog, start_timeout: float, step_timeout: float) -> None:
        self.watchdog, self.start_timeout, self.step_timeout = watchdog, start_timeout, step_timeout
        self.begun = time.monotonic()
        self.first_step = True

    def fit_start(self, state: State, logger: Logger) -> None:
        """Wait for the first batch."""
        del state, logger
        self.enter("the first batch")
        self.begun = time.monotonic()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Wait for a batch."""
        del logger
        if not self.first_step:
            self.enter(f"the loading of step {state.timestamp.batch.value}")

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start a step."""
        del logger
        if self.first_step:
            self._log("first batch")
        self.enter(f"step {state.timestamp.batch.value}")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Finish a step."""
        del logger
        if self.first_step:
            self._log("first step")
            self.first_step = False
        self.enter(f"the end of step {state.timestamp.batch.value - 1}")

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        """Start an evaluation batch."""
        del logger
        batch = state.eval_timestamp.batch.value
        self.enter(f"the evaluation of {state.dataloader_label}, batch {batch}")

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Finish an evaluation."""
        del logger
        self.enter(f"the end of the evaluation at step {state.timestamp.batch.value}")

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Start a checkpoint; Composer runs its saver after all other callbacks."""
        del logger
        self.enter(f"the checkpoint at step {state.timestamp.batch.value}")

    def fit_end(self, state: State, logger: Logger) -> None:
        """Close files."""
        del state, logger
        self.enter("the end of the run")

    def enter(self, what: str) -> None:
        """Report the current activity, as the message of a timeout names it."""
        self.watchdog.enter(what, self.start_timeout if self.first_step else self.step_timeout)

    def _log(self, what: str) -> None:
        now = time.monotonic()
        log_phase(what, now - self.begun)
        self.begun = now
