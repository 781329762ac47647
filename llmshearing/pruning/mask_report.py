"""How close the masks of a run are to their target, and what to do if they missed it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.selection import count_undecided, select
from llmshearing.tables import Table

# Report a problem if an expected size is more than 0.5 % off target, or if cutting to size changes
# the held-out loss by more than 0.01 nats per token.
SIZE_TOLERANCE = 0.005
LOSS_TOLERANCE = 0.01


# Learned masks have beaten the loss of a one-shot cut before recovery in runs of at least this many
# steps (docs/experiments.md).
ENOUGH_STEPS = 300


def times_the_steps(steps: int) -> int:
    """How many times a run's steps reach `ENOUGH_STEPS`; 1 if they do."""
    return max(1, math.ceil(ENOUGH_STEPS / steps))


@dataclass(frozen=True)
class Common:
    """The kept units of an axis, over all layers, that a one-shot cut keeps as well."""

    units: int  # their number
    kept: int  # units that either keeps
    chance: float  # the number that two random choices would have in common
    deviation: float  # its standard deviation

    @property
    def by_chance(self) -> bool:
        """Whether two random choices would often have as many in common, but not all."""
        often = self.chance + 2 * self.deviation
        return self.units <= often < self.kept


def common_units(kept: Tensor, best: Tensor, size: int) -> Common:
    """Compare the units [k] or [L, k] of an axis that masks and a one-shot cut keep.

    Chance is hypergeometric in each layer, of `size` units.
    """
    k, rows = kept.shape[-1], kept.numel() // kept.shape[-1]
    both = (kept.unsqueeze(-1) == best.unsqueeze(-2)).sum()
    variance = rows * (k * (size - k) / size) ** 2 / (size - 1)
    return Common(int(both), kept.numel(), rows * k * k / size, variance**0.5)


@dataclass(frozen=True)
class Comparison:
    """The masks' choice next to a one-shot cut to the same shape, by importance."""

    common: Mapping[Axis, Common]  # per axis, the units that both keep
    # held-out loss of the final weights cut to the units of best score, mean over domains, in nats
    # per token
    importance_loss: float
    # the same of the source's weights; None if the shape was not known then
    oneshot_loss: float | None
    steps: int  # of the run

    def worse(self, exact_loss: float) -> str | None:
        """In what the masks are worse; `exact_loss` is that of the final weights cut to size."""
        reasons = []
        if self.importance_loss < exact_loss:
            reasons.append(
                f"the most important units have a loss of {self.importance_loss:.4f} on the "
                f"trained weights, those that the masks keep {exact_loss:.4f}"
            )
        if self.oneshot_loss is not None and self.oneshot_loss < exact_loss:
            reasons.append(
                f"the source cut at once has a loss of {self.oneshot_loss:.4f} before any training"
            )
        reasons += [
            f"{one.units:,} of the {one.kept:,} kept {axis.value} units are among the most "
            f"important, where chance gives {one.chance:,.0f}"
            for axis, one in self.common.items()
            if one.by_chance
        ]
        if not reasons:
            return None
        times = max(2, times_the_steps(self.steps))
        return (
            f"the masks are worse than a one-shot cut: {'; '.join(reasons)}. Use llmshearing "
            f"prune-oneshot, or {times} times the steps"
        )


@dataclass(frozen=True)
class AxisReport:
    """The masks of one axis."""

    target: int  # units to keep (per layer, for per-layer axes)
    expected: float  # expected kept units, mean over layers
    furthest: float  # expected kept units of the layer that is furthest from the target
    # units of all layers that are neither surely on nor surely off as they should be
    undecided: int
    units: int  # units of all layers


@dataclass(frozen=True)
class MaskReport:
    """The masks of all axes, and the loss before and after the cut to size."""

    axes: Mapping[Axis, AxisReport]  # per axis
    frozen: bool  # whether the kept units were fixed and training continued with them
    # held-out loss, mean over domains, of the model with all gates as they are and without noise,
    # in nats per token; None if it was not measured
    soft_loss: float | None = None
    # the same of the model cut to the target shape, which export writes
    exact_loss: float | None = None
    comparison: Comparison | None = None  # with a one-shot cut; None if no unit was scored

    def problems(self) -> list[str]:
        """What missed its target and what to do about it; empty if nothing did."""
        found = []
        for axis, one in self.axes.items():
            if abs(one.expected - one.target) > SIZE_TOLERANCE * one.target:
                found.append(
                    f"{axis.value}: expected size {one.expected:.1f}, target {one.target}: train "
                    "longer, or raise pruning.quadratic_learning_rate"
                )
            if one.undecided:
                found.append(
                    f"{axis.value}: {one.undecided:,} of {one.units:,} units are undecided: train "
                    "longer, or raise pruning.sharpness"
                )
        soft, exact = self.soft_loss, self.exact_loss
        if soft is not None and exact is not None and abs(exact - soft) > LOSS_TOLERANCE:
            found.append(
                f"cutting to size moves the held-out loss from {soft:.4f} to {exact:.4f}: set "
                "pruning.freeze to an earlier time, so that the weights adapt to the cut"
            )
        if self.comparison is not None and exact is not None:
            worse = self.comparison.worse(exact)
            found += [worse] if worse else []
        return found

    def as_table(self) -> Table:
        """The report for the log."""
        rows = [
            [
                axis.value,
                f"{one.target:,}",
                f"{one.expected:.1f}",
                f"{one.furthest:.1f}",
                f"{one.undecided:,} of {one.units:,}",
                *(self._common(axis) if self.comparison else []),
            ]
            for axis, one in self.axes.items()
        ]
        heads = ["axis", "target", "expected", "furthest", "undecided"]
        heads += ["as one-shot (chance)"] if self.comparison else []
        notes = []
        if self.soft_loss is not None and self.exact_loss is not None:
            notes.append(f"held-out loss {self.soft_loss:.4f}, cut to size {self.exact_loss:.4f}")
        if self.frozen:
            notes.append("the kept units are frozen: the last steps trained the model cut to size")
        if (other := self.comparison) is not None:
            notes.append(
                f"the most important units on the same weights {other.importance_loss:.4f}"
            )
            if other.oneshot_loss is not None:
                notes.append(f"the source cut at once, without training {other.oneshot_loss:.4f}")
        return Table("masks", heads, rows, notes)

    def _common(self, axis: Axis) -> list[str]:
        assert self.comparison is not None
        one = self.comparison.common.get(axis)  # no entry for an axis that keeps every unit
        if one is None:
            return ["-"]
        return [f"{one.units:,} of {one.kept:,} ({one.chance:,.0f})"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "axes": {axis.value: asdict(one) for axis, one in self.axes.items()},
            "frozen": self.frozen,
            "soft_loss": self.soft_loss,
            "exact_loss": self.exact_loss,
            "comparison": None if self.comparison is None else asdict(self.comparison),
            "problems": self.problems(),
        }


def axis_report(keep: Tensor, target: int) -> AxisReport:
    """The report on one axis, from the keep probability of each unit, [n] or [L, n]."""
    rows = keep.double().reshape(-1, keep.shape[-1])
    sizes = rows.sum(-1)
    furthest = sizes[(sizes - target).abs().argmax()]
    kept = select({Axis.HIDDEN: rows}, {Axis.HIDDEN: target})[Axis.HIDDEN]
    return AxisReport(
        target=target,
        expected=sizes.mean().item(),
        furthest=furthest.item(),
        undecided=count_undecided(rows, kept),
        units=keep.numel(),
    )
