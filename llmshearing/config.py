"""The training recipe: its sections, and the rules between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from llmshearing.architecture.target import TargetSettings
from llmshearing.data.settings import DataSettings
from llmshearing.errors import UserError
from llmshearing.mixture.settings import MixtureSettings
from llmshearing.models.settings import DistillationSettings
from llmshearing.pruning.settings import PruningSettings
from llmshearing.quantities import (
    Count,
    Fraction,
    NotNegative,
    PointInRun,
    Positive,
    Seed,
    Steps,
    WallTime,
    steps,
)
from llmshearing.typed_yaml import PathText, Section, build, error_list, load, merge, read

# Overriding one removes the other from a recipe.
EXCLUSIVE = (
    ("mixture.weights", "mixture.start_from"),
    ("distillation.teacher", "distillation.cache"),
)


class RunSettings(Section):
    """One run."""

    directory: PathText = Field(examples=["runs/name"])
    """Where logs, metrics, checkpoints and the manifest go."""
    seed: Seed = 17
    """Of weights, masks, noise and data order."""
    duration: Steps = Field(examples=["3200ba"])
    """Length in optimizer steps, e.g. `3200ba`."""
    eval_interval: Steps = "50ba"
    """Steps between evaluations of the held-out sets."""
    log_interval: Steps = "10ba"
    """Steps between lines on the console."""
    checkpoint: Literal["full", "sharded"] = "full"
    """`full` writes one file from the first rank, `sharded` a file per rank."""
    checkpoint_interval: Steps = "100ba"
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=-1)
    """Number of checkpoints kept; -1 keeps all."""
    export_interval: Steps | None = None
    """Steps between exports as Hugging Face directories, `exports/ba<N>` in the run directory; none
    by default. All are kept."""
    autoresume: bool = True
    """Resume from the run directory's latest checkpoint if there is one."""
    start_timeout: WallTime = "30m"
    """How long each part of the start may take, from connecting the ranks to the end of the first
    step. After that the stacks are printed and the run ends."""
    step_timeout: WallTime = "15m"
    """The same for each later step, evaluation batch and checkpoint."""
    peak_flops: Positive | None = None
    """Operations per second of one device, for the utilisation; not needed for the GPUs in
    `architecture/flops.py`."""
    wandb: str | None = None
    """A Weights & Biases project to log to as well."""

    def rules(self) -> list[str]:
        """Refuse to keep no checkpoint."""
        if self.keep_checkpoints != 0:
            return []
        return ["run.keep_checkpoints: found 0, expected 1 or more, or -1 to keep all"]


class ModelSettings(Section):
    """The source model."""

    path: PathText = Field(examples=["MODEL"])
    """A Hugging Face directory, or `org/name[@revision]` of the hub."""
    initialize: Literal["pretrained", "random"] = "pretrained"
    """`pretrained` reads its weights, `random` takes only its config."""
    attention: str = "sdpa"
    """Transformers' `attn_implementation`."""
    precision: Literal["fp32", "amp_bf16"] = "fp32"
    """Of the forward and backward pass; masks are float32 in either."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass."""
    compile: bool = False
    """Compile each block with torch.compile, as one graph."""
    loss_chunk: int = Field(default=1024, ge=0, lt=1 << 31)
    """Tokens whose logits exist at the same time; 0 for those of a whole microbatch."""


class EvaluationSettings(Section):
    """Benchmark tasks that are scored during the run; none by default."""

    suite: str | None = None
    """`commonsense`, `generative`, `sheared-llama`, or the path of a YAML file."""
    tasks: list[str] = Field(default_factory=list)
    """Some tasks of the suite, or of lm-eval if no suite is given."""
    documents: PathText | None = None
    """A folder of JSON lines with the tasks' documents, so that no network is needed."""
    interval: Steps = "1000ba"
    """Steps between scores; the end of the run is always scored."""
    limit: Count | None = None
    """Documents of each task; all by default."""
    batch_size: Count = 16
    """Requests of a forward pass."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to score."""
        return self.suite is not None or bool(self.tasks)


class OptimizerSettings(Section):
    """AdamW over the weights, with linear warmup and a cosine decay."""

    learning_rate: Positive = Field(examples=[1e-4])
    """At the end of the warmup."""
    warmup: PointInRun = "0.1dur"
    """Length of the linear warmup, e.g. `0.1dur` or `320ba`."""
    final_fraction: Fraction = 0.1
    """The last learning rate as a fraction of the highest."""
    schedule_from: Steps | None = None
    """The step at which this run begins in a schedule over several runs; its start by default."""
    schedule_length: Steps | None = None
    """Length of that schedule; by default it ends with this run."""
    betas: list[float] = Field(default_factory=lambda: [0.9, 0.95], min_length=2, max_length=2)
    """Decay rates of AdamW's two moments."""
    eps: NotNegative = 1e-8
    """AdamW's term in the denominator."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    clip_norm: NotNegative = 1.0
    """Gradient norm bound of the weights; 0 means none."""

    def schedule(self, total: int) -> tuple[int, int]:
        """The first step of a run of `total` steps in its schedule, and the schedule's length."""
        first = steps(self.schedule_from or "0ba")
        return first, steps(self.schedule_length) if self.schedule_length else first + total

    def rules(self) -> list[str]:
        """Refuse decay rates that forget nothing."""
        if all(0 <= beta < 1 for beta in self.betas):
            return []
        return [f"optimizer.betas: found {self.betas}, expected numbers from 0 to below 1"]


class Recipe(Section):
    """Everything that decides a run. With a `target` it prunes, without one it trains as is."""

    run: RunSettings = Field(default_factory=dict, validate_default=True)
    model: ModelSettings = Field(default_factory=dict, validate_default=True)
    target: TargetSettings | None = None
    pruning: PruningSettings = Field(default_factory=PruningSettings)
    data: DataSettings = Field(default_factory=dict, validate_default=True)
    mixture: MixtureSettings = Field(default_factory=MixtureSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    optimizer: OptimizerSettings = Field(default_factory=dict, validate_default=True)
    distillation: DistillationSettings | None = None
    parallelism: Literal["fsdp2", "fsdp1", "ddp"] = "fsdp2"
    """How ranks share the model; `fsdp1` needs GPUs. One process needs none."""
    shard_ranks: Count | None = None
    """Ranks over which one copy of the model is sharded, e.g. the GPUs of a node; the copies are
    replicas of each other. All ranks by default."""

    @property
    def has_masks(self) -> bool:
        """Whether masks learn which units stay."""
        return self.target is not None and self.pruning.method == "masks"

    @property
    def prunes(self) -> bool:
        """Whether this is the pruning stage."""
        return self.target is not None

    def rules(self) -> list[str]:
        """Compare the sections."""
        errors = []
        if self.evaluation.wanted and self.parallelism == "fsdp1":
            errors.append(
                "evaluation: found tasks with parallelism fsdp1, expected fsdp2 or ddp: fsdp1 "
                "gathers no weights outside of a training step"
            )
        if self.shard_ranks is not None and self.parallelism == "ddp":
            errors.append(
                "shard_ranks: found with parallelism ddp, which shards nothing; leave it out or "
                "give parallelism=fsdp2"
            )
        if self.data.workers > self.mixture.prefetch:
            errors.append(
                f"data.workers: found {self.data.workers} with mixture.prefetch "
                f"{self.mixture.prefetch}, expected at least a batch for each worker; raise "
                "mixture.prefetch or lower data.workers"
            )
        if self.distillation is not None:
            errors += self._overlapping(self.distillation)
        return errors + (self._late() or self._undecided())

    def _overlapping(self, settings: DistillationSettings) -> list[str]:
        """A weight of the divergence that would fall before it has risen."""
        total = steps(self.run.duration)
        parts = steps(self.optimizer.warmup, total) + steps(settings.decay, total)
        if settings.schedule == "constant" or parts <= total:
            return []
        return [
            f"distillation.decay: found {settings.decay!r} after optimizer.warmup = "
            f"{self.optimizer.warmup}, expected both within run.duration = {self.run.duration}"
        ]

    def _late(self) -> list[str]:
        """Phases that would not end within the run, so that its target would never be reached."""
        total = steps(self.run.duration)
        first, length = self.optimizer.schedule(total)
        if first + total > length:
            return [
                f"optimizer.schedule_length: found {length}ba, expected at least the run's last "
                f"step in the schedule, {first + total}ba"
            ]
        if steps(self.optimizer.warmup, length) > length:
            return [
                f"optimizer.warmup: found {self.optimizer.warmup!r}, expected at most the length "
                f"of the schedule, {length}ba; a time such as 0.2dur grows with it"
            ]
        phases = {}
        if self.has_masks:
            names = ("warmup", "fix_shape", "sharpen_until", "freeze")
            phases |= {f"pruning.{name}": getattr(self.pruning, name) for name in names}
        return [
            f"{key}: found {value!r}, expected at most run.duration = {self.run.duration}; "
            "a time such as 0.2dur grows with it"
            for key, value in phases.items()
            if steps(value, total) > total
        ]

    def _undecided(self) -> list[str]:
        """Masks that would freeze before the target is reached, with no step to decide on it."""
        if self.target is None or not self.has_masks:
            return []
        total, pruning = steps(self.run.duration), self.pruning
        freeze = steps(pruning.freeze, total)
        before = ("warmup", "fix_shape") if self.target.parameters is not None else ("warmup",)
        for name in before if freeze < total else ():
            if freeze <= steps(getattr(pruning, name), total) < total:
                return [
                    f"pruning.freeze: found {pruning.freeze!r}, expected a time after "
                    f"pruning.{name} = {getattr(pruning, name)}, so that the masks can decide in "
                    "between, or 1dur"
                ]
        return []


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with `key=value` overrides of dotted keys.

    Raises:
        UserError: lists every unknown key, wrong type, missing value and impossible value.
    """
    return load(Recipe, path, overrides, exclusive=EXCLUSIVE)


def parse_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read a recipe as far as it can be read.

    Returns:
        The recipe, with a default or an example in place of each wrong or missing value, and its
        errors.
    """
    given, errors = read(Recipe, path, overrides, exclusive=EXCLUSIVE)
    recipe, found = build(Recipe, given)
    assert recipe is not None  # every required field has an example
    return recipe, list(dict.fromkeys(errors + found))


def parse_target(sizes: Sequence[str]) -> TargetSettings:
    """The target section alone, from `hidden=128` and the like.

    Raises:
        UserError: lists every unknown size and wrong value.
    """
    given, errors = merge(TargetSettings, {}, sizes, "SIZE=N")
    target, found = build(TargetSettings, given)
    if errors or found or target is None:
        raise UserError(error_list("--target", errors + found))
    return target


def leaves(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe's plain form by dotted key; an empty section is one."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found
