"""The recipe: its schema and the checks that need no other file.

A recipe is YAML plus `key=value` overrides. Every error is found before any is reported.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from llmshearing import strict
from llmshearing.architecture.target import TargetSettings
from llmshearing.errors import UserError
from llmshearing.mixture.settings import MixtureSettings
from llmshearing.pruning.settings import PruningSettings


@dataclass
class RunSettings:
    """One run.

    Attributes:
        directory: where logs, metrics, checkpoints and the manifest go.
        seed: of weights, masks, noise and data order.
        duration: length in optimizer steps, e.g. `3200ba`.
        eval_interval: steps between evaluations of the held-out sets, e.g. `50ba`.
        log_interval: steps between lines on the console.
        checkpoint: `full` writes one file from the first rank, `sharded` a file per rank.
        checkpoint_interval: steps between checkpoints.
        keep_checkpoints: checkpoints kept; -1 keeps all.
        autoresume: go on from the run directory's latest checkpoint when there is one.
        start_timeout: time, e.g. `30m`, that each part of the start may take, from the meeting of
            the ranks to the end of the first step; then stacks are shown and the run ends.
        step_timeout: the same for each later step, evaluation batch and checkpoint.
        peak_flops: operations per second of one device, for the utilisation; not needed for the
            GPUs in `architecture/flops.py`.
        wandb: a project of Weights & Biases to log to as well.
    """

    directory: str = MISSING
    seed: int = 17
    duration: str = MISSING
    eval_interval: str = "50ba"
    log_interval: str = "10ba"
    checkpoint: str = "full"
    checkpoint_interval: str = "100ba"
    keep_checkpoints: int = 2
    autoresume: bool = True
    start_timeout: str = "30m"
    step_timeout: str = "15m"
    peak_flops: float | None = None
    wandb: str | None = None


@dataclass
class ModelSettings:
    """The source model.

    Attributes:
        path: a Hugging Face directory.
        initialize: `pretrained` reads its weights, `random` takes only its config.
        attention: Transformers' `attn_implementation`.
        precision: `fp32` or `amp_bf16`; masks are float32 in either.
        activation_checkpointing: recompute blocks in the backward pass.
        compile: compile each block with torch.compile, as one graph.
        loss_chunk: tokens whose logits exist at the same time; 0 for those of a whole microbatch.
    """

    path: str = MISSING
    initialize: str = "pretrained"
    attention: str = "sdpa"
    precision: str = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    loss_chunk: int = 1024


@dataclass
class DataSettings:
    """Where rows come from and how they are cut.

    Attributes:
        root: a data tree made by `data_prep/prepare.py`, or the local cache of a remote one.
        remote: a remote data tree, e.g. `s3://bucket/data`; its shards are fetched into `root`.
        split: the split to train on, `prune` or `continue`.
        eval_split: the split to evaluate on, one evaluator per domain.
        global_batch: rows per optimizer step over all ranks.
        microbatch: rows per forward pass of one rank.
        eval_batch: rows per evaluation batch of one rank.
        eval_rows: rows per domain to evaluate on; all where it is not given.
        workers: loader processes per rank.
        verify: `hash` compares shards with their recorded hashes, `size` only their sizes.
    """

    root: str = MISSING
    remote: str | None = None
    split: str = MISSING
    eval_split: str = "eval"
    global_batch: int = MISSING
    microbatch: int = MISSING
    eval_batch: int = 16
    eval_rows: int | None = None
    workers: int = 1
    verify: str = "hash"


@dataclass
class OptimizerSettings:
    """AdamW over the weights, with linear warmup and a cosine to a fraction.

    Attributes:
        learning_rate: at the end of the warmup.
        warmup: time, e.g. `0.1dur` or `320ba`.
        final_fraction: the last learning rate as a part of the highest.
        betas, eps, weight_decay: of AdamW.
        clip_norm: gradient norm bound of the weights; 0 means none.
    """

    learning_rate: float = MISSING
    warmup: str = "0.1dur"
    final_fraction: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass
class Recipe:
    """Everything that decides a run. `target` present means pruning, absent training as it is.

    Attributes:
        parallelism: `fsdp2`, `fsdp1` (GPUs only) or `ddp`; one process needs none.
        shard_ranks: ranks among which one copy of the model is sharded, e.g. the GPUs of a node;
            the copies are replicas of each other. All ranks where not given.
    """

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    target: TargetSettings | None = None
    pruning: PruningSettings = field(default_factory=PruningSettings)
    data: DataSettings = field(default_factory=DataSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallelism: str = "fsdp2"
    shard_ranks: int | None = None

    @property
    def prunes(self) -> bool:
        """Whether this is the pruning stage."""
        return self.target is not None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` with dotted keys, as on the command line.

    Raises:
        UserError: lists every unknown key, wrong type, missing value and impossible value.
    """
    recipe, errors = parse_recipe(path, overrides)
    if errors or recipe is None:
        raise UserError(error_list(str(path), errors))
    return recipe


# Two ways to say where the mixture starts: an override of the one replaces a recipe's other.
INSTEAD = (("mixture.weights", "mixture.start_from"),)


def parse_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, list[str]]:
    """Read a recipe as far as it can be read.

    Returns:
        The recipe without the keys that are wrong (None where a value is missing), and its errors.
    """
    given, errors = strict.read(Path(path), overrides, Recipe, INSTEAD)
    config = OmegaConf.structured(Recipe)
    errors += strict.fill(config, given, Recipe)
    missing = sorted(OmegaConf.missing_keys(config))
    errors += [f"{key}: not given; expected a value" for key in missing]
    if missing:
        return None, errors
    for key in PATHS:
        if value := OmegaConf.select(config, key):
            OmegaConf.update(config, key, os.path.expanduser(value))  # noqa: PTH111 (of text)
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    return recipe, errors + own_errors(recipe)


def parse_target(sizes: Sequence[str]) -> TargetSettings:
    """The target section alone, from `hidden=128` and the like.

    Raises:
        UserError: lists every unknown size and wrong value.
    """
    config = OmegaConf.structured(TargetSettings)
    given, errors = strict.parse(sizes, TargetSettings, "SIZE=N")
    errors += strict.fill(config, given, TargetSettings, "target")
    if errors:
        raise UserError(error_list("--target", errors))
    target = OmegaConf.to_object(config)
    assert isinstance(target, TargetSettings)
    return target


def error_list(what: str, errors: Sequence[str]) -> str:
    """One message out of all errors of a recipe."""
    lines = "\n".join(f"  - {error}" for error in errors)
    return f"{what} has {len(errors)} error{'s' if len(errors) > 1 else ''}:\n{lines}"


def leaves(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe's plain form by dotted key; an empty section is one."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as it stands in the log, the run directory and the manifest."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def steps(text: str, total: int | None = None) -> int:
    """Optimizer steps of a time.

    Args:
        text: `320ba`, or `0.1dur` where `total` is given.
        total: steps of the whole run.

    Raises:
        ValueError: no such time.
    """
    if re.fullmatch("[0-9]{1,9}ba", text):
        return int(text[:-2])
    if text.endswith("dur") and total is not None:
        fraction = float(text[:-3])
        if 0 <= fraction <= 1:
            return round(fraction * total)
    raise ValueError(text)


def seconds(text: str) -> float:
    """Seconds of a time such as `90s`, `30m` or `2h`.

    Raises:
        ValueError: no such time.
    """
    found = re.fullmatch("([0-9]{1,6})([smh])", text)
    if found is None or int(found[1]) == 0:
        raise ValueError(text)
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]])


# Keys whose value is a path; `~` in them is the user's home.
PATHS = (
    "run.directory", "model.path", "data.root", "data.remote", "pruning.importance",
    "mixture.start_from", "mixture.references",
)  # fmt: skip
Rule = tuple[Callable[[Any], bool], str]  # of one value: what must hold, and its words


def _one_of(*choices: str) -> Rule:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _readable(read: Callable[[str], float], words: str) -> Rule:
    """A time that `read` takes and that is more than nothing."""

    def holds(text: str) -> bool:
        try:
            return read(text) > 0
        except ValueError:
            return False

    return holds, words


POSITIVE: Rule = (lambda number: 0 < number < math.inf, "more than 0 and finite")
NOT_NEGATIVE: Rule = (lambda number: 0 <= number < math.inf, "0 or more and finite")
COUNT: Rule = (lambda count: 1 <= count < 1 << 31, "1 or more, below 2^31")
FRACTION: Rule = (lambda part: 0 <= part <= 1, "a number from 0 to 1")
INTERVAL = _readable(steps, "steps with a unit, e.g. 300ba, below 1e9")
MOMENT = _readable(lambda text: steps(text, 1) + 1, "a time such as 0.1dur or 320ba")
LIMIT = _readable(seconds, "a time with a unit, e.g. 30m")
RULES: dict[str, Rule] = {
    "run.seed": (lambda seed: 0 <= seed < 1 << 31, "0 or more, below 2^31"),
    "run.duration": INTERVAL,
    "run.eval_interval": INTERVAL,
    "run.log_interval": INTERVAL,
    "run.checkpoint": _one_of("full", "sharded"),
    "data.verify": _one_of("hash", "size"),
    "run.checkpoint_interval": INTERVAL,
    "run.keep_checkpoints": (lambda kept: kept >= 1 or kept == -1, "1 or more, or -1 to keep all"),
    "run.start_timeout": LIMIT,
    "run.step_timeout": LIMIT,
    "run.peak_flops": POSITIVE,
    "model.initialize": _one_of("pretrained", "random"),
    "model.precision": _one_of("fp32", "amp_bf16"),
    "model.loss_chunk": (lambda tokens: tokens >= 0, "tokens, or 0 for all"),
    "pruning.noise": _one_of("shared", "per_rank"),
    "pruning.warmup": MOMENT,
    "pruning.fix_shape": MOMENT,
    "pruning.sharpen_until": MOMENT,
    "pruning.freeze": MOMENT,
    "pruning.sharpness": (
        lambda factor: 1 <= factor < math.inf,
        "at least 1 and finite (1 leaves the masks as the paper has them)",
    ),
    "pruning.importance_spread": NOT_NEGATIVE,
    "pruning.learning_rate": POSITIVE,
    "pruning.linear_learning_rate": NOT_NEGATIVE,
    "pruning.quadratic_learning_rate": NOT_NEGATIVE,
    "pruning.final_fraction": FRACTION,
    "pruning.clip_norm": NOT_NEGATIVE,
    "data.global_batch": COUNT,
    "data.microbatch": COUNT,
    "data.eval_batch": COUNT,
    "data.eval_rows": COUNT,
    "data.workers": NOT_NEGATIVE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup": MOMENT,
    "optimizer.final_fraction": FRACTION,
    "optimizer.betas": (
        lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        "two numbers from 0 to below 1",
    ),
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "parallelism": _one_of("fsdp2", "fsdp1", "ddp"),
    "shard_ranks": COUNT,
}


def own_errors(recipe: Recipe) -> list[str]:
    """Errors that the recipe alone shows."""
    config = OmegaConf.structured(recipe)
    errors = []
    for key, (holds, words) in RULES.items():
        value = OmegaConf.select(config, key)
        if value is not None and not holds(value):
            errors.append(f"{key}: found {value!r}, expected {words}")
    if not errors:
        errors += _late(recipe)
    if recipe.shard_ranks is not None and recipe.parallelism == "ddp":
        errors.append(
            "shard_ranks: found with parallelism ddp, which shards nothing; leave it out or give "
            "parallelism=fsdp2"
        )
    if recipe.data.microbatch > recipe.data.global_batch > 0:
        errors.append(
            f"data.microbatch: found {recipe.data.microbatch}, expected at most "
            f"data.global_batch = {recipe.data.global_batch}"
        )
    return errors


def _late(recipe: Recipe) -> list[str]:
    """Phases that would not end within the run, so that its target would never be reached."""
    total, errors = steps(recipe.run.duration), []
    pruning = ("warmup", "fix_shape", "sharpen_until", "freeze") if recipe.prunes else ()
    for key in ("optimizer.warmup", *(f"pruning.{name}" for name in pruning)):
        section, _, name = key.partition(".")
        value = getattr(getattr(recipe, section), name)
        if steps(value, total) > total:
            errors.append(
                f"{key}: found {value!r}, expected at most run.duration = {recipe.run.duration}; "
                "a time such as 0.2dur grows with it"
            )
    return errors or (_undecided(recipe, total) if recipe.prunes else [])


def _undecided(recipe: Recipe, total: int) -> list[str]:
    """Masks that would freeze before the target stands, with no step to decide on it."""
    settings = recipe.pruning
    assert recipe.target is not None
    freeze, by_budget = steps(settings.freeze, total), recipe.target.parameters is not None
    for name in ("warmup", "fix_shape") if by_budget else ("warmup",):
        if freeze <= steps(getattr(settings, name), total) < total and freeze < total:
            return [
                f"pruning.freeze: found {settings.freeze!r}, expected a time after pruning.{name} "
                f"= {getattr(settings, name)}, so that the masks can decide in between, or 1dur"
            ]
    return []
