"""The schedule of the masks: a pure function of the training step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskState:
    """What the schedule asks of the masks at one step.

    Attributes:
        step: the training step; it keys the noise.
        ramp: progress of the sparsity warmup, from 0 (the source's sizes) to 1 (the target's).
        sharpness: factor on the mask logits; a higher one leaves fewer units undecided.
        deciding: whether the decision penalty replaces the constraint.
        frozen: whether the kept units are fixed, so that training continues with the model that
            export would write.
        shaped: whether the target shape is fixed; with a budget it is from some step on.
    """

    step: int = 0
    ramp: float = 0.0
    sharpness: float = 1.0
    deciding: bool = False
    frozen: bool = False
    shaped: bool = True


@dataclass(frozen=True)
class MaskSchedule:
    """The phases of a pruning run, in steps: shrink, sharpen, decide, freeze.

    Attributes:
        warmup: steps over which the target moves linearly from the source's sizes to its own; 20 %
            of the run in the paper.
        sharpen_until: step at which the sharpness reaches its final value. From the end of the
            warmup on it grows by the same factor each step.
        decide: step at which the decision penalty replaces the constraint.
        freeze: step at which the kept units are fixed.
        sharpness: final sharpness; 1 leaves the logits as they are, as in the paper.
        fix_shape: with a budget, the step at which its shape is fixed.
    """

    warmup: int
    sharpen_until: int
    decide: int
    freeze: int
    sharpness: float
    fix_shape: int = 0

    def at(self, step: int) -> MaskState:
        """The state at a step."""
        ramp = min(1.0, step / self.warmup) if self.warmup else 1.0
        length = max(1, self.sharpen_until - self.warmup)
        sharpened = min(1.0, max(0.0, (step - self.warmup) / length))
        return MaskState(
            step=step,
            ramp=ramp,
            sharpness=self.sharpness**sharpened,
            deciding=self.decide <= step < self.freeze,
            frozen=step >= self.freeze,
            shaped=step >= self.fix_shape,
        )
