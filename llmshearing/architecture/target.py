"""The target that a user asks for, checked against the source that is to reach it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from pydantic import Field

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget, smallest
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape
from llmshearing.quantities import ByteSize, Count, Latency, Quantity, count
from llmshearing.typed_yaml import Section

Size = Literal["hidden", "layers", "heads", "kv_groups", "intermediate"]
AxisName = Literal["hidden", "layer", "head", "kv_group", "intermediate"]
SIZES: tuple[Size, ...] = get_args(Size)
AXIS_OF: dict[Size, Axis] = {
    "hidden": Axis.HIDDEN,
    "layers": Axis.LAYER,
    "heads": Axis.HEAD,
    "kv_groups": Axis.KV_GROUP,
    "intermediate": Axis.INTERMEDIATE,
}


class ServingSettings(Section):
    """How the model will generate text: what the budgets `memory` and `latency` refer to."""

    batch: Count = 1
    """Sequences at a time."""
    context: Count = 4096
    """Tokens of each sequence in the KV cache, for `memory`."""
    prompt: Count = 128
    """Tokens of a prompt, for `latency`."""
    new_tokens: Count = 64
    """Tokens generated after it, for `latency`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the weights and the KV cache."""


class TargetSettings(Section):
    """The shape to prune to, or budgets that lead to one.

    Sizes that are not given stay as in the source. Learned masks take sizes or `parameters`,
    `llmshearing search` takes everything.
    """

    hidden: Count | None = None
    """Width of the residual stream."""
    layers: Count | None = None
    """Number of layers."""
    heads: Count | None = None
    """Query heads per layer."""
    kv_groups: Count | None = None
    """Key-value heads per layer (grouped-query attention only)."""
    intermediate: Count | None = None
    """Inner width of the MLP."""
    multiple_of: dict[Size, Count] = Field(default_factory=dict)
    """Divisors, e.g. `{intermediate: 64}`: each named size must be a multiple of its divisor."""
    parameters: Quantity | None = None
    """A budget such as `1.3B`, instead of sizes: the masks choose the shape."""
    memory: ByteSize | None = None
    """A budget such as `4GiB` for the weights and the KV cache, as `serving` says."""
    latency: Latency | None = None
    """A budget of time from one token to the next, such as `8ms`, or at least a speed such as
    `120tok/s`, measured on this device as `serving` says."""
    serving: ServingSettings | None = None
    """What `memory` and `latency` refer to."""
    axes: list[AxisName] = Field(default_factory=list)
    """With a budget, the axes that may shrink (`hidden`, `layer`, `head`, `kv_group`,
    `intermediate`); all by default, and all others keep their size."""
    minimum: dict[Size, Count] | None = None
    """The smallest sizes that a search considers, e.g. `{layers: 16}`."""
    maximum: dict[Size, Count] | None = None
    """The largest sizes that a search considers."""

    @property
    def given_sizes(self) -> dict[Size, int]:
        """The sizes that are given."""
        return {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}

    @property
    def for_search(self) -> list[str]:
        """The given keys that only `llmshearing search` supports."""
        names = ("memory", "latency", "minimum", "maximum")
        return [f"target.{name}" for name in names if getattr(self, name)]


def resolve_target(
    table: CouplingTable, settings: TargetSettings
) -> tuple[Shape | Budget, list[str]]:
    """Resolve the target that a user asks for against its source.

    Returns:
        The target shape, or the budget that leads to one, and the list of errors.
    """
    if settings.for_search:
        return table.source, [
            f"{', '.join(settings.for_search)}: found with learned masks, expected sizes or "
            "target.parameters; find a shape within other budgets with llmshearing search"
        ]
    if settings.parameters is not None:
        return resolve_budget(table, settings)
    if settings.axes:
        return table.source, ["target.axes: only valid with target.parameters; remove it"]
    return resolve_shape(table, settings)


def resolve_budget(
    table: CouplingTable, settings: TargetSettings
) -> tuple[Shape | Budget, list[str]]:
    """Resolve a budget of parameters; see `resolve_target`."""
    sizes = table.sizes(table.source)
    if error := _budget_error(table, settings):
        return table.source, [error]
    axes = [axis for axis in sizes if axis.value in settings.axes] or list(sizes)
    steps = {AXIS_OF[name]: step for name, step in settings.multiple_of.items()}
    if too_large := [
        f"target.multiple_of: found {steps[axis]} for {axis.value}, but the source has only "
        f"{sizes[axis]}; give a smaller divisor"
        for axis in axes
        if steps.get(axis, 1) > sizes[axis]
    ]:
        return table.source, too_large
    shrinking = tuple(axis for axis in axes if sizes[axis] > steps.get(axis, 1))
    budget = Budget(count(settings.parameters or ""), shrinking, steps)
    most, least = table.parameter_count(table.source), smallest(table, budget)
    if budget.parameters >= most:
        return budget, [
            f"target.parameters: found {budget.parameters:,}, but the source has {most:,}; give "
            "fewer"
        ]
    if budget.parameters < table.parameter_count(least):
        return budget, [
            f"target.parameters: found {budget.parameters:,}, but the smallest model that these "
            f"axes allow has {table.parameter_count(least):,}; give more, or more axes"
        ]
    return budget, _divisor_errors(least, settings.multiple_of)


def _budget_error(table: CouplingTable, settings: TargetSettings) -> str | None:
    """What keeps any budget from being used with these settings, or None."""
    if given := settings.given_sizes:
        return f"target.parameters: found sizes as well ({', '.join(given)}); give either"
    if table.implied_head_size or table.heads_divide_hidden:
        return (
            "target.parameters: this family's config ties the hidden size to the heads, which "
            "masks choose independently; give target.hidden and target.heads instead"
        )
    if error := axes_error(table, settings):
        return error
    if table.grouped and settings.multiple_of.get("heads", 1) > 1:
        return (
            "target.multiple_of.heads: with a budget the masks choose KV groups and the heads "
            "within them independently; give target.multiple_of.kv_groups instead"
        )
    return None


def axes_error(table: CouplingTable, settings: TargetSettings) -> str | None:
    """Which of `target.axes` the source does not have, or None."""
    known = [axis.value for axis in table.sizes(table.source)]
    unknown = sorted(set(settings.axes) - set(known))
    if not unknown:
        return None
    return f"target.axes: unknown {', '.join(unknown)}, expected some of {', '.join(known)}"


def resolve_shape(table: CouplingTable, settings: TargetSettings) -> tuple[Shape, list[str]]:
    """Resolve the sizes of a shape; see `resolve_target`. Sizes not given are the source's."""
    source = table.source
    given = settings.given_sizes
    multi_head = source.heads == source.kv_groups
    if multi_head and "heads" in given:
        given.setdefault("kv_groups", given["heads"])
    target = replace(source, **given)
    named = [name for name in SIZES if name in given and (name != "kv_groups" or not multi_head)]
    errors = [*_size_errors(source, target, named), *_divisor_errors(target, settings.multiple_of)]
    if not errors:
        errors = _head_errors(source, target, multi_head)
    if not errors and (error := table.shape_error(target)):
        errors = [f"target: {error}"]
    if not errors and target == source:
        errors.append(
            "target: every size equals the source's, so there is nothing to prune; "
            "give at least one smaller size or remove the section"
        )
    return target, errors


def _size_errors(source: Shape, target: Shape, names: Sequence[str]) -> list[str]:
    sizes = [(name, getattr(source, name), getattr(target, name)) for name in names]
    return [
        f"target.{name}: found {wanted}, but the source has {most}; pruning only makes a model "
        f"smaller, so give at most {most}"
        for name, most, wanted in sizes
        if wanted > most
    ]


def _divisor_errors(target: Shape, rules: Mapping[Size, int]) -> list[str]:
    errors = []
    for name, divisor in rules.items():
        found = getattr(target, name)
        if remainder := found % divisor:
            below, above = found - remainder, found - remainder + divisor
            errors.append(
                f"target.{name}: found {found}, which is not a multiple of {divisor} as "
                f"target.multiple_of.{name} asks; give {f'{below} or ' if below else ''}{above}"
            )
    return errors


def _head_errors(source: Shape, target: Shape, multi_head: bool) -> list[str]:
    if multi_head and target.heads != target.kv_groups:
        return [
            f"target.kv_groups: found {target.kv_groups} with {target.heads} heads, but the source "
            "has one key-value head per head; leave kv_groups out"
        ]
    if target.heads % target.kv_groups:
        return [
            f"target.heads: {target.heads} heads do not divide into {target.kv_groups} KV groups; "
            f"give a multiple of {target.kv_groups}, or another target.kv_groups"
        ]
    if target.heads_per_group > source.heads_per_group:
        return [
            f"target.heads: {target.heads} heads in {target.kv_groups} KV groups are "
            f"{target.heads_per_group} per group, but the source has only "
            f"{source.heads_per_group}; give at most {target.kv_groups * source.heads_per_group} "
            "heads, or more KV groups"
        ]
    return []
