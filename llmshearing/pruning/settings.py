"""The `pruning` section of a recipe; no torch, so that a recipe can be read without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PruningSettings:
    """How masks learn.

    Attributes:
        distribution: `linear` (no noise, may exceed 1), `paper` or
            `released`.
        constraint: `paper` (counts, per layer) or `released` (fractions, mean over layers).
        warmup: time (`0.2dur`, `640ba`) over which the target moves from the source's sizes to its
            own.
        sharpness: factor that the mask logits reach, so that few units end undecided; 1 is the
            paper's, none.
        sharpen_until: time at which they reach it, some steps before they freeze at the latest.
        freeze: time from which on the choice of units is fixed and training goes on with exactly
            the model that export would write, not before the end of the warmup; `1dur` is the
            paper's, never.
        fix_shape: with a budget of parameters, the time from which on the shape is fixed.
        init_log_alpha: the mask logits at the start.
        importance: a file of scores made by `llmshearing importance`; the masks start in its order.
        importance_spread: half the range of the starting logits in that order.
        noise: `shared` draws the same noise on every rank, `per_rank` independent noise.
        learning_rate: of the masks (Adam).
        linear_learning_rate: of the linear multipliers, the constraint's integral part: where it is
            large, expected sizes swing around their target. Both are for gaps in fractions; for
            gaps in counts they are divided so that the constraint pulls as hard.
        quadratic_learning_rate: of the quadratic multipliers, its proportional part. Adam makes it
            about the growth per step, so it has to reach the loss's sensitivity early in the run.
        final_fraction: these rates fall by a cosine to this part of themselves after the warmup.
        clip_norm: gradient norm bound of the masks, and of the multipliers of each rate; 0 means
            none.
    """

    distribution: str = "linear"
    constraint: str = "released"
    warmup: str = "0.2dur"
    sharpness: float = 8.0
    sharpen_until: str = "0.8dur"
    freeze: str = "0.9dur"
    fix_shape: str = "0.4dur"
    init_log_alpha: float = 4.0
    importance: str | None = None
    importance_spread: float = 1.0
    noise: str = "shared"
    learning_rate: float = 1.0
    linear_learning_rate: float = 0.2
    quadratic_learning_rate: float = 1.0
    final_fraction: float = 0.1
    clip_norm: float = 0.0
