"""One line on the console every few steps: where the run is, how fast, how long still."""

from __future__ import annotations

import logging
import time

import torch
from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger

from llmshearing.models.shearing import ShearingModel, unwrapped

log = logging.getLogger(__name__)


class Progress(Callback):
    """Logs loss, throughput, time left, and while pruning the expected sizes.

    Args:
        interval: steps between lines.
        tokens_per_batch: tokens of one optimizer step over all ranks.
        total: steps of the run.
        world_size: ranks.
    """

    def __init__(self, interval: int, tokens_per_batch: int, total: int, world_size: int) -> None:
        self.interval, self.tokens_per_batch = interval, tokens_per_batch
        self.total, self.world_size = total, world_size
        self.clock: tuple[float, int] | None = None
        self.evaluating = 0.0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start the clock at the first step, so that start-up does not count."""
        del logger
        if self.clock is None:
            self.clock = (time.monotonic(), state.timestamp.batch.value)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Evaluation is not training time."""
        del state, logger
        self.evaluating = time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Move the clock by the evaluation's length."""
        del state, logger
        if self.clock is not None:
            self.clock = (self.clock[0] + time.monotonic() - self.evaluating, self.clock[1])

    def batch_end(self, state: State, logger: Logger) -> None:
        """Report."""
        step = state.timestamp.get(TimeUnit.BATCH).value
        if step % self.interval and step != self.total:
            return
        assert self.clock is not None
        since, first = self.clock
        rate = (step - first) / max(time.monotonic() - since, 1e-9)
        tokens = rate * self.tokens_per_batch
        self.clock = (time.monotonic(), step)
        model = unwrapped(state.model)
        measured = {"throughput/tokens_per_second": tokens}
        measured["throughput/tokens_per_second_per_device"] = tokens / self.world_size
        measured |= pruning_metrics(model)
        logger.log_metrics(measured)
        loss = state.loss["ce"] if isinstance(state.loss, dict) else state.loss
        assert isinstance(loss, torch.Tensor)
        log.info(
            "step %d/%d  ce %.4f  %s%s tokens/s  %s left",
            step,
            self.total,
            loss.item(),
            _sizes(model),
            f"{tokens:,.0f}",
            duration((self.total - step) / rate),
        )


def pruning_metrics(model: ShearingModel) -> dict[str, float]:
    """Expected sizes, targets and multipliers of the last draw; empty without masks."""
    drawn, masks = model.last_draw, model.masks
    if drawn is None or masks is None:
        return {}
    metrics = {"pruning/expected_parameters": drawn.expected_parameters.item()}
    for axis, expected in drawn.expected.items():
        metrics[f"pruning/expected/{axis.value}"] = expected.mean().item()
        metrics[f"pruning/target/{axis.value}"] = masks.target_now(axis)
    for kind, values in drawn.multipliers.items():
        for axis, value in values.items():
            metrics[f"pruning/multiplier/{axis.value}/{kind}"] = value.mean().item()
    return metrics


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _sizes(model: ShearingModel) -> str:
    drawn, masks = model.last_draw, model.masks
    if drawn is None or masks is None:
        return ""
    parts = [
        f"{axis.value} {expected.mean().item():.1f}/{masks.target_now(axis):.1f}"
        for axis, expected in drawn.expected.items()
    ]
    return "  ".join(parts) + "  "
