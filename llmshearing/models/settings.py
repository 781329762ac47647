"""The `distillation` section of a recipe: a teacher, and its part of the loss."""

from typing import Literal

from pydantic import Field

from llmshearing.quantities import Fraction, PointInRun, Positive
from llmshearing.typed_yaml import PathText, Section


class DistillationSettings(Section):
    """A frozen teacher whose distributions the model learns besides the text itself."""

    teacher: PathText | None = None
    """A Hugging Face directory, or `org/name[@revision]` of the hub, with the same tokenizer. By
    default the source itself when pruning, and the unpruned model when training an exported one."""
    cache: PathText | None = None
    """A directory made by `llmshearing teacher-cache` for this data, in place of a teacher."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """KL(teacher || model), KL(model || teacher), or the generalised Jensen-Shannon divergence."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Share of the teacher in the mixture of `jsd`: near 0 it acts like `forward_kl`, near 1 like
    `reverse_kl`. The other divergences ignore it."""
    temperature: Positive = 1.0
    """By which both models' logits are divided; the divergence is multiplied by its square."""
    weight: Fraction = 1.0
    """Of the divergence in the loss; the rest is cross entropy."""
    schedule: Literal["constant", "warmup_stable_decay"] = "constant"
    """`warmup_stable_decay` raises the weight from 0 over `optimizer.warmup` and lowers it to 0
    over the last `decay`, linearly."""
    decay: PointInRun = "0.2dur"
    """Length of that decay, e.g. `0.2dur` or `100ba`."""
    teacher_precision: Literal["fp32", "bf16"] | None = None
    """Of the teacher's weights and forward pass; by default as `model.precision` computes."""
    teacher_sharding: Literal["run", "offload"] = "run"
    """`run` places the teacher like the model, sharded or whole on every rank; `offload` keeps it
    in host memory between its forward passes."""

    def rules(self) -> list[str]:
        """Refuse what a cache leaves no choice about."""
        if self.cache is None:
            return []
        given = ("teacher", self.teacher), ("teacher_precision", self.teacher_precision)
        errors = [
            f"distillation.cache: found with distillation.{name}, expected one of them: the cache "
            "takes the place of a teacher"
            for name, value in given
            if value is not None
        ]
        if self.divergence != "forward_kl":
            errors.append(
                f"distillation.divergence: found {self.divergence} with distillation.cache, "
                "expected forward_kl: the others need the teacher's whole distributions"
            )
        if self.teacher_sharding != "run":
            errors.append(
                f"distillation.teacher_sharding: found {self.teacher_sharding} with "
                "distillation.cache, which has no teacher in memory; leave it out"
            )
        return errors

    def narrow_teacher(self, precision: str) -> bool:
        """Whether the teacher is bf16, in a run of the given `model.precision`."""
        default = "bf16" if precision == "amp_bf16" else "fp32"
        return (self.teacher_precision or default) == "bf16"

    @property
    def divergence_beta(self) -> float:
        """The one number that decides the divergence; see `models/divergence.py`."""
        return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(self.divergence, self.beta)
