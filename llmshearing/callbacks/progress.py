"""One line on the console every few steps: where the run is, how fast, how long still."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger

from llmshearing.architecture.flops import FORMULA
from llmshearing.models.shearing import ShearingModel, unwrapped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arithmetic:
    """What a run computes, and on what.

    Attributes:
        flops_per_token: of the forward and backward pass.
        peak: operations per second of one device; None where it is unknown.
        device: its name.
    """

    flops_per_token: int
    peak: float | None
    device: str

    def utilisation(self, tokens_per_second: float) -> float | None:
        """The part of one device's peak that its tokens per second are worth."""
        return tokens_per_second * self.flops_per_token / self.peak if self.peak else None

    def told(self) -> str:
        """Formula and peak, for the log."""
        operations = f"{self.flops_per_token:.4g} operations per token ({FORMULA})"
        if self.peak is None:
            return (
                f"{operations}; no utilisation, since the peak of {self.device} is not known: "
                "run.peak_flops gives it"
            )
        return (
            f"model FLOPs utilisation (MFU) is tokens per second and device x {operations} / "
            f"{self.peak:.4g} operations per second, the peak of {self.device}"
        )


class Progress(Callback):
    """Logs loss, throughput, utilisation, time left, and while pruning the expected sizes.

    Args:
        interval: steps between lines.
        tokens_per_batch: tokens of one optimizer step over all ranks.
        total: steps of the run.
        world_size: ranks.
        arithmetic: of the run.
    """

    def __init__(
        self,
        interval: int,
        tokens_per_batch: int,
        total: int,
        world_size: int,
        arithmetic: Arithmetic,
    ) -> None:
        self.interval, self.tokens_per_batch = interval, tokens_per_batch
        self.total, self.world_size, self.arithmetic = total, world_size, arithmetic
        self.clock: tuple[float, int] | None = None
        self.evaluating = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say how utilisation is counted."""
        del state, logger
        log.info("%s", self.arithmetic.told())

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
        own = tokens / self.world_size
        measured = {"throughput/tokens_per_second": tokens}
        measured["throughput/tokens_per_second_per_device"] = own
        utilisation = self.arithmetic.utilisation(own)
        if utilisation is not None:
            measured["throughput/model_flops_utilisation"] = utilisation
        measured |= pruning_metrics(model)
        logger.log_metrics(measured)
        log.info(
            "step %d/%d  ce %.4f  %s%s  %s left",
            step,
            self.total,
            float(state.total_loss_dict["loss/train/ce"]),  # of all rows on all ranks
            _sizes(model),
            _speed(tokens, self.world_size, utilisation),
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


def _speed(tokens: float, ranks: int, utilisation: float | None) -> str:
    """Tokens per second of all ranks, and what a reader compares runs of several by."""
    parts = [f"{tokens / ranks:,.0f} each"] if ranks > 1 else []
    if utilisation is not None:
        parts.append(f"{utilisation:.1%} MFU")
    return f"{tokens:,.0f} tokens/s" + (f" ({', '.join(parts)})" if parts else "")


def _sizes(model: ShearingModel) -> str:
    drawn, masks = model.last_draw, model.masks
    if drawn is None or masks is None:
        return ""
    parts = [
        f"{axis.value} {expected.mean().item():.1f}/{masks.target_now(axis):.1f}"
        for axis, expected in drawn.expected.items()
    ]
    return "  ".join(parts) + "  "
