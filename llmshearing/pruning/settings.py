"""The `pruning` section of a recipe; no torch, so that a recipe can be read without it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from llmshearing.quantities import Fraction, NotNegative, PointInRun, Positive
from llmshearing.typed_yaml import PathText, Section

# Beyond this bound the gradient of the keep probability vanishes, and a unit given up early could
# not come back. Masks start inside the bound, since clamping would erase the noise of the start.
LOG_ALPHA_BOUND = 5.0
# What a preset changes in the defaults below. `paper`: arXiv 2310.06694, section 2.1.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "distribution": "paper",
        "constraint": "paper",
        "sharpness": 1.0,
        "freeze": "1dur",
        "linear_learning_rate": 1.0,
        "final_fraction": 1.0,
        "start": "uniform",
    },
}


class PruningSettings(Section):
    """How the model is cut to its target."""

    method: Literal["masks", "oneshot"] = "masks"
    """`masks` learns which units stay, then `llmshearing export` cuts. `oneshot` cuts at once to
    the units of highest `importance` and trains the cut model; it ignores all other keys."""
    preset: Literal["default", "paper"] = "default"
    """Where the defaults of the other keys come from: `paper` is exactly the paper's method."""
    distribution: Literal["linear", "paper", "released"] = "linear"
    """Of the gates: `linear` (no noise, may exceed 1), `paper` (hard concrete, beta 0.83) or
    `released` (hard concrete of the released code)."""
    constraint: Literal["paper", "released"] = "released"
    """`paper` (counts, per layer) or `released` (fractions, mean over layers)."""
    warmup: PointInRun = "0.2dur"
    """Time over which the target moves from the source's sizes to its own, e.g. `640ba`."""
    sharpness: float = Field(default=8.0, ge=1)
    """Factor that the mask logits reach, so that few units end undecided; 1 (none) in the paper."""
    sharpen_until: PointInRun = "0.8dur"
    """Time at which they reach it, at the latest some steps before they freeze."""
    freeze: PointInRun = "0.9dur"
    """Time from which the choice of units is fixed and training continues with exactly the model
    that export would write, not before the end of the warmup; `1dur` is never, as in the paper."""
    fix_shape: PointInRun = "0.4dur"
    """With a budget of parameters, the time from which the shape is fixed."""
    start: Literal["auto", "importance", "uniform"] = "auto"
    """Of the mask logits: by the `importance` of the units, `uniform`, or `auto`: by importance if
    a file of scores is given or measuring them costs less than 1 % of the run's operations."""
    init_log_alpha: float = Field(default=4.0, gt=-LOG_ALPHA_BOUND, lt=LOG_ALPHA_BOUND)
    """The mask logits at the start; by importance, those of units with the median score."""
    importance: PathText | None = None
    """A file of scores made by `llmshearing importance`; without one the run measures them."""
    importance_spread: NotNegative = 1.0
    """How far the logits of the best and worst scores start from those of the median."""
    noise: Literal["shared", "per_rank"] = "shared"
    """`shared` draws the same noise on every rank, `per_rank` independent noise."""
    learning_rate: Positive = 1.0
    """Of the masks (Adam)."""
    linear_learning_rate: NotNegative = 0.2
    """Of the linear multipliers, the constraint's integral part. If it is large, expected sizes
    oscillate around their target. Both multiplier rates are for gaps in fractions; for gaps in
    counts they are divided so that the constraint pulls as hard."""
    quadratic_learning_rate: NotNegative = 1.0
    """Of the quadratic multipliers, its proportional part. Adam makes it about the growth per step,
    so it has to reach the loss's sensitivity early in the run."""
    final_fraction: Fraction = 0.1
    """These rates fall by a cosine to this fraction of themselves after the warmup."""
    clip_norm: NotNegative = 0.0
    """Gradient norm bound of the masks, and of the multipliers of each rate; 0 means none."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("preset") in list(PRESETS):
            return {**PRESETS[given["preset"]], **given}
        return given

    def rules(self) -> list[str]:
        """Refuse scores that would not be used, and masks of which no unit would ever be on."""
        if self.start == "uniform" and self.importance:
            return [
                f"pruning.importance: found {self.importance} with pruning.start uniform, which "
                "does not use it; give pruning.start=importance, or leave the file out"
            ]
        highest = self.init_log_alpha + (self.importance_spread if self.importance else 0.0)
        if self.distribution != "linear" or highest > 0:
            return []
        return [
            f"pruning.init_log_alpha: found {self.init_log_alpha}, expected more than 0 with the "
            "distribution linear, or pruning.importance and a spread that reaches there: no unit "
            "would ever be on"
        ]
