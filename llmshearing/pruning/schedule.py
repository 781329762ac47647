"""The schedule of the masks: a pure function of the training step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskState:
    """What the schedule asks of the masks at one step."""

    step: int = 0  # the training step; it keys the noise
    # progress of the sparsity warmup, from 0 (the source's sizes) to 1 (the target's)
    ramp: float = 0.0
    sharpness: float = 1.0  # factor on the mask logits; a higher one leaves fewer units undecided
    deciding: bool = False  # whether the decision penalty replaces the constraint
    # whether the kept units are fixed, so that training continues with the model that export would
    # write
    frozen: bool = False
    shaped: bool = True  # whether the target shape is fixed; with a budget it is from some step on


@dataclass(frozen=True)
class MaskSchedule:
    """The phases of a pruning run, in steps: shrink, sharpen, decide, freeze."""

    # steps over which the target moves linearly from the source's sizes to its own; 20 % of the run
    # in the paper
    warmup: int
    # step at which the sharpness reaches its final value. From the end of the warmup on it grows by
    # the same factor each step
    sharpen_until: int
    decide: int  # step at which the decision penalty replaces the constraint
    freeze: int  # step at which the kept units are fixed
    sharpness: float  # final sharpness; 1 leaves the logits as they are, as in the paper
    fix_shape: int = 0  # with a budget, the step at which its shape is fixed

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
