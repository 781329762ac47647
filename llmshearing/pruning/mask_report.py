"""What the masks of a run have come to, and what to do where they missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.pruning.selection import count_undecided, select

# An expected size may miss its target by this part of it, and the soft model's loss that of the
# model cut to size by this many nats per token, before the verdict says so.
SIZE_TOLERANCE = 0.005
LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class AxisReport:
    """One axis.

    Attributes:
        target: units to keep (per layer, for per-layer axes).
        expected: expected kept units, mean over layers.
        furthest: expected kept units of the layer that is furthest from the target.
        undecided: units of all layers that are neither surely on nor surely off as they should.
        units: units of all layers.
    """

    target: int
    expected: float
    furthest: float
    undecided: int
    units: int


@dataclass(frozen=True)
class MaskReport:
    """All axes, and the losses beside each other.

    Attributes:
        axes: per axis.
        frozen: whether training went on with the model cut to size.
        soft_loss: mean held-out loss over domains of the model with its gates as they are, without
            noise, nats per token; None where it was not measured.
        exact_loss: that of the model cut to the target shape, which export writes.
    """

    axes: Mapping[Axis, AxisReport]
    frozen: bool
    soft_loss: float | None = None
    exact_loss: float | None = None

    def problems(self) -> list[str]:
        """What missed, and what to do about it; empty when all is well."""
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
        if self.soft_loss is not None and self.exact_loss is not None:
            lost = self.exact_loss - self.soft_loss
            if abs(lost) > LOSS_TOLERANCE:
                found.append(
                    f"the model cut to size has a held-out loss of {self.exact_loss:.4f}, the "
                    f"trained one {self.soft_loss:.4f}: set pruning.freeze to an earlier time, so "
                    "that the weights get used to the cut"
                )
        return found

    def as_table(self) -> str:
        """Lines for a terminal."""
        lines = [f"{'axis':<14}{'target':>8}{'expected':>10}{'furthest':>10}{'undecided':>18}"]
        for axis, one in self.axes.items():
            open_units = f"{one.undecided:,} of {one.units:,}"
            lines.append(
                f"{axis.value:<14}{one.target:>8,}{one.expected:>10.1f}{one.furthest:>10.1f}"
                f"{open_units:>18}"
            )
        if self.soft_loss is not None and self.exact_loss is not None:
            lines.append(
                f"held-out loss {self.exact_loss:.4f} cut to size, {self.soft_loss:.4f} as trained"
            )
        if self.frozen:
            lines.append(
                "frozen: the last steps trained the model cut to size; above are its masks"
            )
        return "\n".join(lines)

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
    """The verdict on one axis.

    Args:
        keep: probability of each unit to stay, [n] or [L, n].
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
