"""The recipe: its schema, its strict loading, and the checks that need no other file.

A recipe is YAML plus `key=value` overrides. Every error is found before any is reported.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.architecture.target import TargetSettings
from llmshearing.errors import UserError
from llmshearing.loading.settings import LoadingSettings
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
    loading: LoadingSettings = field(default_factory=LoadingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    parallelism: str = "fsdp2"
    shard_ranks: int | None = None

    @property
    def prunes(self) -> bool:
        """Whether this is the pruning stage."""
        return self.target is not None


CHOICES = {
    "run.checkpoint": ("full", "sharded"),
    "model.initialize": ("pretrained", "random"),
    "model.precision": ("fp32", "amp_bf16"),
    "pruning.noise": ("shared", "per_rank"),
    "parallelism": ("fsdp2", "fsdp1", "ddp"),
}
POSITIVE = ("data.global_batch", "data.microbatch", "data.eval_batch", "optimizer.learning_rate")
PHASES = ("warmup", "choose", "sharpen_until", "settle")  # of a pruning run
STEP_TIMES = ("duration", "eval_interval", "log_interval", "checkpoint_interval")


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


def parse_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, list[str]]:
    """Read a recipe as far as it can be read.

    Returns:
        The recipe without the keys that are wrong (None where a value is missing), and its errors.
    """
    errors: list[str] = []
    given = _read_yaml(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            errors.append(f"{override}: expected key=value")
            continue
        given = OmegaConf.merge(given, OmegaConf.from_dotlist([override]))
    config = OmegaConf.structured(Recipe)
    for key, value in _leaves(OmegaConf.to_container(given, resolve=True), Recipe):
        errors += _assign(config, key, value)
    missing = sorted(OmegaConf.missing_keys(config))
    errors += [f"{key}: not given; expected a value" for key in missing]
    if missing:
        return None, errors
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    return recipe, errors + own_errors(recipe)


def parse_target(sizes: Sequence[str]) -> TargetSettings:
    """The target section alone, from `hidden=128` and the like.

    Raises:
        UserError: lists every unknown size and wrong value.
    """
    config = OmegaConf.structured(Recipe)
    errors: list[str] = []
    for override in sizes:
        key, equals, value = override.partition("=")
        given = OmegaConf.from_dotlist([f"value={value}"])["value"] if equals else None
        errors += _assign(config, f"target.{key}", given) if equals else [f"{key}: expected SIZE=N"]
    if errors:
        raise UserError(error_list("--target", errors))
    target = OmegaConf.to_object(config.target)
    assert isinstance(target, TargetSettings)
    return target


def error_list(what: str, errors: Sequence[str]) -> str:
    """One message out of all errors of a recipe."""
    lines = "\n".join(f"  - {error}" for error in errors)
    return f"{what} has {len(errors)} error{'s' if len(errors) > 1 else ''}:\n{lines}"


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
    if text.endswith("ba") and text[:-2].isdigit():
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
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if unit is None or not text[:-1].isdigit() or int(text[:-1]) == 0:
        raise ValueError(text)
    return float(int(text[:-1]) * unit)


def own_errors(recipe: Recipe) -> list[str]:
    """Errors that the recipe alone shows."""
    config = OmegaConf.structured(recipe)
    errors = []
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in choices:
            errors.append(f"{key}: found {value!r}, expected one of {', '.join(choices)}")
    for key in POSITIVE:
        value = OmegaConf.select(config, key)
        if value <= 0:
            errors.append(f"{key}: found {value}, expected more than 0")
    if recipe.run.keep_checkpoints < 1 and recipe.run.keep_checkpoints != -1:
        errors.append(
            f"run.keep_checkpoints: found {recipe.run.keep_checkpoints}, expected 1 or more, or -1 "
            "to keep all"
        )
    errors += _time_errors(recipe)
    if recipe.pruning.sharpness < 1:
        errors.append(
            f"pruning.sharpness: found {recipe.pruning.sharpness}, expected at least 1 (1 leaves "
            "the masks as the paper has them)"
        )
    if recipe.model.loss_chunk < 0:
        errors.append(
            f"model.loss_chunk: found {recipe.model.loss_chunk}, expected tokens, or 0 for all"
        )
    if recipe.shard_ranks is not None:
        if recipe.shard_ranks < 1:
            errors.append(f"shard_ranks: found {recipe.shard_ranks}, expected at least 1")
        if recipe.parallelism == "ddp":
            errors.append(
                "shard_ranks: found with parallelism ddp, which shards nothing; leave it out or "
                "give parallelism=fsdp2"
            )
    if recipe.run.peak_flops is not None and recipe.run.peak_flops <= 0:
        errors.append(f"run.peak_flops: found {recipe.run.peak_flops}, expected more than 0")
    if recipe.data.microbatch > recipe.data.global_batch > 0:
        errors.append(
            f"data.microbatch: found {recipe.data.microbatch}, expected at most "
            f"data.global_batch = {recipe.data.global_batch}"
        )
    return errors


def _time_errors(recipe: Recipe) -> list[str]:
    errors = []
    for name in ("start_timeout", "step_timeout"):
        value = getattr(recipe.run, name)
        try:
            seconds(value)
        except ValueError:
            errors.append(f"run.{name}: found {value!r}, expected a time with a unit, e.g. 30m")
    for name in STEP_TIMES:
        value = getattr(recipe.run, name)
        try:
            if steps(value) < 1:
                raise ValueError(value)
        except ValueError:
            errors.append(f"run.{name}: found {value!r}, expected steps with a unit, e.g. 300ba")
    for key, value in {
        "optimizer.warmup": recipe.optimizer.warmup,
        **{f"pruning.{name}": getattr(recipe.pruning, name) for name in PHASES},
    }.items():
        try:
            steps(value, 1)
        except ValueError:
            errors.append(f"{key}: found {value!r}, expected a time such as 0.1dur or 320ba")
    return errors


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"found no recipe at {path}; give the path of a YAML file, e.g. in yamls/")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # the parser's own classes differ between OmegaConf versions
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} holds a list, expected sections such as run, model and data")
    return config


def _leaves(value: Any, schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, down to where the schema ends."""
    for key, item in (value or {}).items():
        inner = _field_type(schema, key)
        if isinstance(item, dict) and dataclasses.is_dataclass(inner):
            yield from _leaves(item, inner, f"{prefix}{key}.") if item else [(f"{prefix}{key}", {})]
        else:
            yield prefix + str(key), item


def _field_type(schema: Any, name: str) -> Any:
    """The type of a schema's field; of an optional section, the section's."""
    hints = _hints(schema)
    kind = hints.get(name)
    if typing.get_origin(kind) is dict:
        return kind
    return next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), kind)


def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}


def _assign(config: DictConfig, key: str, value: Any) -> list[str]:
    """Set one key; the error, if it is unknown or of the wrong type."""
    names, schema = key.split("."), Recipe
    for depth, name in enumerate(names):
        known = _hints(schema)
        if name not in known:
            return [_unknown_key(key, names[:depth], name, list(known))]
        schema = _field_type(schema, name)
        section = ".".join(names[: depth + 1])
        if dataclasses.is_dataclass(schema):
            inside = depth < len(names) - 1
            if OmegaConf.select(config, section) is None and (inside or value is not None):
                OmegaConf.update(config, section, OmegaConf.structured(schema))
            if depth == len(names) - 1:
                return (
                    [] if value in ({}, None) else [f"{key}: found {value!r}, expected a section"]
                )
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        return [f"{key}: {reason}"]
    return []


def _unknown_key(key: str, parents: list[str], name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    section = ".".join(parents) or "the recipe"
    if near:
        return f"{key}: unknown key in {section}; did you mean {'.'.join([*parents, near[0]])}?"
    return f"{key}: unknown key in {section}; known: {', '.join(known)}"
