"""How close the masks of a run are to their target, and what to do if they missed it."""

from __future__ import annotations

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


@dataclass(frozen=True)
class AxisReport:
    """The masks of one axis.

    Attributes:
        target: units to keep (per layer, for per-layer axes).
        expected: expected kept units, mean over layers.
        furthest: expected kept units of the layer that is furthest from the target.
        undecided: units of all layers that are neither surely on nor surely off as they should be.
        units: units of all layers.
    """

    target: int
    expected: float
    furthest: float
    undecided: int
    units: int


@dataclass(frozen=True)
class MaskReport:
    """The masks of all axes, and the loss before and after the cut to size.

    Attributes:
        axes: per axis.
        frozen: whether the kept units were fixed and training continued with them.
        soft_loss: held-out loss, mean over domains, of the model with all gates as they are and
            without noise, in nats per token; None if it was not measured.
        exact_loss: the same of the model cut to the target shape, which export writes.
    """

    axes: Mapping[Axis, AxisReport]
    frozen: bool
    soft_loss: float | None = None
    exact_loss: float | None = None

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
            ]
            for axis, one in self.axes.items()
        ]
        notes = []
        if self.soft_loss is not None and self.exact_loss is not None:
            notes.append(f"held-out loss {self.soft_loss:.4f}, cut to size {self.exact_loss:.4f}")
        if self.frozen:
            notes.append("the kept units are frozen: the last steps trained the model cut to size")
        return Table("masks", ["axis", "target", "expected", "furthest", "undecided"], rows, notes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "axes": {axis.value: asdict(one) for axis, one in self.axes.items()},
            "frozen": self.frozen,
            "soft_loss": self.soft_loss,
            "exact_loss": self.exact_loss,
            "problems": self.problems(),
        }


def axis_report(keep: Tensor, target: int) -> AxisReport:
    """The report on one axis.

    Args:
        keep: keep probability of each unit, [n] or [L, n].
        target: units to keep (per layer).
    """
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
