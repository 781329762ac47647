"""What a pruning run asks of its masks at a step: a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskState:
    """The state of the schedule at one step.

    Attributes:
        step: the training step, which keys the noise.
        ramp: how far the target has moved, from 0 (the source's sizes) to 1 (its own).
        sharpness: factor on the mask logits; the higher, the fewer units are undecided.
        deciding: whether units that are not sure yet are pulled to the side that they are on, which
            stands in for the constraint.
        frozen: whether the choice of units is made, and training goes on with the model that
            export would write.
        shaped: whether the target shape stands; with a budget it does from some step on.
    """

    step: int = 0
    ramp: float = 0.0
    sharpness: float = 1.0
    deciding: bool = False
    frozen: bool = False
    shaped: bool = True


@dataclass(frozen=True)
class MaskSchedule:
    """The phases of a pruning run: shrink, sharpen, decide, freeze.

    Attributes:
        warmup: steps over which the target moves from the source's sizes to its own (paper,
            section 2.1: linearly).
        sharpen_until: step at which the sharpness reaches its end; it grows by an equal factor
            each step from the end of the warmup on.
        decide: step from which on, until they freeze, units are pulled to the side that they are
            on.
        freeze: step from which on the choice of units is fixed.
        sharpness: the sharpness at the end; 1 leaves the logits as they are, as in the paper.
        fix_shape: with a budget, the step from which on the shape is fixed.
    """

    warmup: int
    sharpen_until: int
    decide: int
    freeze: int
    sharpness: float
    fix_shape: int = 0

    def at(self, step: int) -> MaskState:
        """The moment of a step."""
        ramp = min(1.0, step / self.warmup) if self.warmup else 1.0
        length = max(1, self.sharpen_until - self.warmup)
        part = min(1.0, max(0.0, (step - self.warmup) / length))
        return MaskState(
            step=step,
            ramp=ramp,
            sharpness=self.sharpness**part,
            deciding=self.decide <= step < self.freeze,
            frozen=step >= self.freeze,
            shaped=step >= self.fix_shape,
        )
