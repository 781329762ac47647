"""Stop a run on SIGUSR1 or SIGTERM, after saving a checkpoint."""

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


class Stopped(Exception):  # noqa: N818 - not an error
    """Leaves the training loop on every rank once the checkpoint is written."""


class StopSignal(Callback):
    """Ends a run with a checkpoint at the end of the step in which any rank gets a signal.

    All ranks stop at the same step: one integer is reduced after each step. Composer has read the
    step's loss by then, so the device is idle and the reduction adds no wait.

    Used as a context manager, it only notes the signals, also while the model loads. A run that is
    signalled that early stops after its first step, so that short time slots still make progress.
    Repeated signals change nothing: Slurm sends them twice.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
            signal.pthread_sigmask(
                signal.SIG_UNBLOCK, SIGNALS
            )  # `train.py` blocked them during its imports
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A signal that arrives while Python shuts down must not change the exit status: a repeated
        # one after a stop, or the launcher's, which signals all ranks as soon as the first of them
        # exits with an error of the user.
        refused = kind is not None and issubclass(kind, UserError) and dist.get_world_size() > 1
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.agreed or refused else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame  # do not log here: the signal may have interrupted the logger
        self.received = self.received or number

    def or_every(self, interval: str) -> Callable[[State, Event], bool]:
        """When to save a checkpoint: at each interval, at the end, and before a stop."""
        due = create_interval_scheduler(interval)
        return lambda state, event: (
            due(state, event) or (bool(self.agreed) and event == Event.BATCH_CHECKPOINT)
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Agree on all ranks whether to stop after this step."""
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
        """Stop here, not in `batch_end`: the loggers have flushed the last step by now.

        A finished run starts no further batch, so it ends as usual.
        """
        if self.agreed:
            raise Stopped
