"""Steps, tokens and hours of a run, from a given or a measured utilisation."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from llmshearing.architecture.families import family_of
from llmshearing.architecture.flops import forward_flops_per_token, training_flops_per_token
from llmshearing.checkpoints.manifest import RUN_FILE, RunManifest
from llmshearing.config import Recipe
from llmshearing.errors import UserError
from llmshearing.files import json_lines
from llmshearing.planning.devices import Device
from llmshearing.quantities import steps

# The paper's own runs: 0.27 while pruning 7B, 0.28 in continued pre-training at 1.3B.
ASSUMED_MFU = 0.3
RATE = "throughput/tokens_per_second_per_device"


@dataclass(frozen=True)
class Speed:
    """The speed of one device."""

    achieved: float  # model operations per second
    mfu: float | None  # as a fraction of the device's peak; None if the peak is unknown
    source: str  # where the figure comes from


@dataclass(frozen=True)
class Schedule:
    """What a run computes."""

    steps: int  # optimizer steps
    tokens: int  # tokens trained on
    evaluations: int  # times that the held-out sets are run through
    eval_tokens: int  # tokens of all evaluations
    flops_per_token: int  # operations of training per token, without a teacher
    teacher_flops_per_token: int = 0  # operations of the teacher's forward pass per token

    @property
    def flops(self) -> float:
        """Operations of training with the teacher's; evaluations have none of its."""
        return (self.flops_per_token + self.teacher_flops_per_token) * self.tokens

    @property
    def eval_flops(self) -> float:
        """Operations of all evaluations; the forward pass is a third of a step."""
        return self.flops_per_token * self.eval_tokens / 3


def schedule(
    recipe: Recipe,
    sequence_length: int,
    flops_per_token: int,
    rows: int,
    teacher_flops_per_token: int = 0,
) -> Schedule:
    """The schedule of a recipe; `rows` are the held-out rows of all domains together."""
    total = steps(recipe.run.duration)
    every = steps(recipe.run.eval_interval)
    evaluations = -(-total // every)
    return Schedule(
        steps=total,
        tokens=total * recipe.data.global_batch * sequence_length,
        evaluations=evaluations,
        eval_tokens=evaluations * rows * sequence_length,
        flops_per_token=flops_per_token,
        teacher_flops_per_token=teacher_flops_per_token,
    )


def hours(flops: float, speed: Speed | None, devices: int) -> float | None:
    """Wall-clock hours of a number of operations; None if the speed is unknown."""
    return None if speed is None else flops / (speed.achieved * devices) / 3600


def stated_speed(device: Device, mfu: float | None) -> Speed | None:
    """The speed at a utilisation; None for a device whose peak is unknown.

    Raises:
        UserError: the utilisation is not between 0 and 1.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(
            f"--mfu: found {mfu:g}, expected a fraction above 0 and at most 1, e.g. 0.3"
        )
    if device.peak is None:
        return None
    given, source = (mfu, "as given") if mfu else (ASSUMED_MFU, "assumed; give --mfu or --run")
    return Speed(device.peak * given, given, source)


def measured_speed(run: Path, device: Device) -> Speed:
    """The speed of an earlier run, from its metrics and manifest.

    It is in operations, so that a run of one size can be used to plan one of another size.

    Raises:
        UserError: no run there, or it has not logged its throughput.
    """
    rate = statistics.median(_rates(run))
    manifest = _manifest(run)
    config = manifest.source.config
    table = family_of(config).table(config)
    length = manifest.data.sequence_length
    operations = training_flops_per_token(table, length)
    if (teacher := manifest.teacher) is not None and manifest.cache is None:
        taught = family_of(teacher.config).table(teacher.config)
        operations += forward_flops_per_token(taught, length)
    achieved = rate * operations
    mfu = None if device.peak is None else achieved / device.peak
    return Speed(achieved, mfu, f"measured, {rate:,.0f} tokens/s per device in {run}")


def _rates(run: Path) -> list[float]:
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"--run: found no metrics.jsonl in {run}, expected a run directory")
    found = [line.get("metrics", {}) for line in json_lines(file.read_bytes())]
    rates = [metrics[RATE] for metrics in found if RATE in metrics]
    if not rates:
        raise UserError(f"--run: found no {RATE} in {file}; expected a run that logged steps")
    return rates[len(rates) // 2 :]  # the first steps warm up


def _manifest(run: Path) -> RunManifest:
    found = [run / RUN_FILE, *sorted(run.glob("checkpoints/ba*.json"))]
    file = next((path for path in found if path.is_file()), None)
    if file is None:
        raise UserError(
            f"--run: found no {RUN_FILE} in {run}; expected a run that has written a checkpoint"
        )
    return RunManifest.read(file)
