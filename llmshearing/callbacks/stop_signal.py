"""A run that is told to stop saves a checkpoint first: SIGUSR1 and SIGTERM on any rank."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist

from llmshearing.errors import UserError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818  (it is no error)
    """Leaves the training loop on every rank, after the checkpoint is written."""


class StopSignal(Callback):
    """Ends a run at the end of a step when any rank was signalled, with a checkpoint.

    All ranks decide at the same step, by one reduction of an integer after each step. Composer has
    read the step's loss by then, so the device is idle and nothing is waited for twice.

    As a context manager it listens: the signals do nothing else than to be noted, also while the
    model loads (then the run stops after its first step, so that a run whose time is too short
    still gets on). Repeated signals change nothing: Slurm sends them twice.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `train.py` held them back
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A stopped run ends here: a signal repeated while Python shuts down must not change its
        # exit status. Nor must the launcher's, which comes as soon as the first of several ranks
        # has ended with the user's message.
        told = kind is not None and issubclass(kind, UserError) and dist.get_world_size() > 1
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.agreed or told else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame  # no logging here: the signal may have come in the middle of it
        self.received = self.received or number

    def or_every(self, interval: str) -> Callable[[State, Event], bool]:
        """When to save a checkpoint: every so often, at the end, and before stopping."""
        due = create_interval_scheduler(interval)
        return lambda state, event: (
            due(state, event) or (bool(self.agreed) and event == Event.BATCH_CHECKPOINT)
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Agree whether this step is the last one."""
        del logger
        received = state.device.tensor_to_device(torch.tensor([self.received]))
        dist.all_reduce(received, "MAX")
        self.agreed = int(received.item())
        if self.agreed:
            log.info(
                "%s at step %d: saving a checkpoint, then stopping",
                signal.Signals(self.agreed).name,
                state.timestamp.batch.value,
            )

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Stop; here the loggers have written the last step, and a finished run never comes."""
        del state, logger
        if self.agreed:
            raise Stopped
