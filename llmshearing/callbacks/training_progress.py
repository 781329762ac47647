"""Logs where a run is, how fast it trains and how long it will still take."""

import logging
import time
from dataclasses import dataclass

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.architecture.flops import FORMULA
from llmshearing.models.shearing import ShearingModel, unwrapped
from llmshearing.progress import IN_BAR, Progress, duration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlopsModel:
    """What a run computes per token, and on which device."""

    flops_per_token: int  # of the forward and backward pass
    peak: float | None  # operations per second of one device; None if unknown
    device: str  # its name

    def utilisation(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation of one device at its tokens per second; None without a peak."""
        return tokens_per_second * self.flops_per_token / self.peak if self.peak else None

    def __str__(self) -> str:
        """Formula and peak, for the log."""
        operations = f"{self.flops_per_token:.4g} operations per token ({FORMULA})"
        if self.peak is None:
            return (
                f"{operations}; MFU is not reported because the peak of {self.device} is unknown: "
                "set run.peak_flops"
            )
        return (
            f"MFU (model FLOPs utilisation) is tokens per second and device x {operations} / "
            f"{self.peak:.4g} operations per second, the peak of {self.device}"
        )


class TrainingProgress(Callback):
    """Logs loss, throughput, MFU, time left and, while pruning, the expected sizes.

    A line comes every `interval` of `total` steps, of `tokens_per_batch` over all ranks each.
    """

    def __init__(self, interval: int, tokens_per_batch: int, total: int, flops: FlopsModel) -> None:
        self.interval, self.tokens_per_batch, self.total = interval, tokens_per_batch, total
        self.flops = flops
        self.since: tuple[float, int] | None = None  # time and step of the last line
        self.evaluation_start = 0.0
        self.rate = 0.0  # steps per second since the line before the last
        quiet = dist.get_global_rank() != 0
        self.bar = Progress("train", total, "steps", seconds_between_lines=None, quiet=quiet)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Log how utilisation is counted."""
        log.info("%s", self.flops)
        self.bar.__enter__()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Start the clock at the first step, so that start-up does not count."""
        if self.since is None:
            self.since = (time.monotonic(), state.timestamp.batch.value)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Stop the clock: evaluation is not training time."""
        self.evaluation_start = time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Restart the clock."""
        if self.since is not None:
            self.since = (self.since[0] + time.monotonic() - self.evaluation_start, self.since[1])

    def batch_end(self, state: State, logger: Logger) -> None:
        """Update the bar and, every `interval` steps, the log and the metrics."""
        step = state.timestamp.batch.value
        if step % self.interval == 0 or step == self.total:
            self._report(step, state, logger)
        left = (self.total - step) / self.rate if self.rate else None
        self.bar.update(step, left=left)

    def close(self, state: State, logger: Logger) -> None:
        """Remove the bar."""
        self.bar.__exit__()

    def _report(self, step: int, state: State, logger: Logger) -> None:
        assert self.since is not None
        now = time.monotonic()
        self.rate = (step - self.since[1]) / max(now - self.since[0], 1e-9)
        self.since = (now, step)
        model, ranks = unwrapped(state.model), dist.get_world_size()
        tokens = self.rate * self.tokens_per_batch
        each = tokens / ranks
        metrics = {
            "throughput/tokens_per_second": tokens,
            "throughput/tokens_per_second_per_device": each,
        }
        utilisation = self.flops.utilisation(each)
        if utilisation is not None:
            metrics["throughput/model_flops_utilisation"] = utilisation
        logger.log_metrics(metrics | pruning_metrics(model))
        self.bar.detail = "  ".join(
            [*_losses(state), *_sizes(model), _speed(tokens, ranks, utilisation)]
        )
        left = duration((self.total - step) / self.rate)
        log.info("step %d/%d  %s  %s left", step, self.total, self.bar.detail, left, extra=IN_BAR)


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


def _losses(state: State) -> list[str]:
    """Cross entropy and, with a teacher, divergence and total; of all rows on all ranks."""
    losses = {n.removeprefix("loss/train/"): float(v) for n, v in state.total_loss_dict.items()}
    names = ("ce", "divergence", "total") if "divergence" in losses else ("ce",)
    return [f"{name} {losses[name]:.4f}" for name in names]


def _speed(tokens: float, ranks: int, utilisation: float | None) -> str:
    """Tokens per second of all ranks, then per rank and MFU, which compare across run sizes."""
    parts = [f"{tokens / ranks:,.0f} each"] if ranks > 1 else []
    if utilisation is not None:
        parts.append(f"{utilisation:.1%} MFU")
    return f"{tokens:,.0f} tokens/s" + (f" ({', '.join(parts)})" if parts else "")


def _sizes(model: ShearingModel) -> list[str]:
    """Expected and target size of each axis."""
    drawn, masks = model.last_draw, model.masks
    if drawn is None or masks is None:
        return []
    return [
        f"{axis.value} {expected.mean().item():.1f}/{masks.target_now(axis):.1f}"
        for axis, expected in drawn.expected.items()
    ]
