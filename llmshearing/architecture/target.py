"""From the target that a user asks for to a shape that its source can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from pydantic import Field

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.budget import Budget, smallest
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.shape import Shape, implied_head_size_error
from llmshearing.quantities import Count, Quantity, count
from llmshearing.typed_yaml import Section

Size = Literal["hidden", "layers", "heads", "kv_groups", "intermediate"]
AxisName = Literal["hidden", "layer", "head", "kv_group", "intermediate"]
SIZES: tuple[Size, ...] = get_args(Size)


class TargetSettings(Section):
    """The shape to prune to. What is not given stays as in the source."""

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
    """Divisor rules, e.g. `{intermediate: 64}`; each named size must be divisible."""
    parameters: Quantity | None = None
    """A budget such as `1.3B`, instead of sizes: the masks choose the shape."""
    axes: list[AxisName] = Field(default_factory=list)
    """With a budget, the axes that may shrink (`hidden`, `layer`, `head`, `kv_group`,
    `intermediate`); all by default."""


def resolve_target(
    table: CouplingTable, settings: TargetSettings
) -> tuple[Shape | Budget, list[str]]:
    """A shape, or a budget that leads to one, and what is wrong with it."""
    if settings.parameters is not None:
        return resolve_budget(table, settings)
    if settings.axes:
        return table.source, ["target.axes: goes with target.parameters only; remove it"]
    return resolve_shape(table, settings)


def resolve_budget(
    table: CouplingTable, settings: TargetSettings
) -> tuple[Shape | Budget, list[str]]:
    """Check a budget of parameters."""
    asked = [name for name in SIZES if getattr(settings, name) is not None]
    if asked:
        return table.source, [
            f"target.parameters: found sizes beside it ({', '.join(asked)}); give either"
        ]
    if table.implied_head_size:
        return table.source, [
            "target.parameters: this family's config ties the hidden size to the heads, which the "
            "masks do not know; give target.hidden and target.heads instead"
        ]
    parameters = count(settings.parameters or "")
    own = list(table.sizes(table.source))
    known = [axis for axis in own if axis.value in settings.axes] or own
    unknown = sorted(set(settings.axes) - {axis.value for axis in own})
    if unknown:
        names = ", ".join(axis.value for axis in own)
        return table.source, [
            f"target.axes: unknown {', '.join(unknown)}, expected some of {names}"
        ]
    if table.grouped and settings.multiple_of.get("heads", 1) > 1:
        return table.source, [
            "target.multiple_of.heads: with a budget the masks choose KV groups and the heads "
            "within them apart; give target.multiple_of.kv_groups instead"
        ]
    budget = Budget(parameters, tuple(known), _steps(settings.multiple_of))
    if out_of_reach := [
        f"target.multiple_of: found {budget.step(axis)} for {axis.value}, but the source has only "
        f"{table.sizes(table.source)[axis]}; give a smaller divisor"
        for axis in known
        if budget.step(axis) > table.sizes(table.source)[axis]
    ]:
        return table.source, out_of_reach
    shrinking = tuple(a for a in known if table.sizes(table.source)[a] > budget.step(a))
    budget = replace(budget, axes=shrinking)  # one that cannot shrink is not masked
    source, least = table.parameter_count(table.source), smallest(table, budget)
    if parameters >= source:
        return budget, [
            f"target.parameters: found {parameters:,}, but the source has {source:,}; give fewer"
        ]
    if parameters < table.parameter_count(least):
        return budget, [
            f"target.parameters: found {parameters:,}, but the smallest model that these axes "
            f"allow has {table.parameter_count(least):,}; give more, or more axes"
        ]
    return budget, _divisor_errors(replace(least), settings.multiple_of)


def _steps(multiple_of: Mapping[Size, int]) -> dict[Axis, int]:
    """The divisor rules by axis. Under grouped-query attention heads follow their groups."""
    axes = {"hidden": Axis.HIDDEN, "layers": Axis.LAYER, "intermediate": Axis.INTERMEDIATE}
    axes |= {"kv_groups": Axis.KV_GROUP, "heads": Axis.HEAD}
    return {axes[name]: step for name, step in multiple_of.items()}


def resolve_shape(table: CouplingTable, settings: TargetSettings) -> tuple[Shape, list[str]]:
    """Fill what the settings leave open and check what they ask.

    Args:
        table: the source's coupling table.
        settings: what the user asks for.

    Returns:
        The target shape and the list of errors, empty when the source can reach the target.
    """
    source = table.source
    asked = {name: getattr(settings, name) for name in SIZES if getattr(settings, name) is not None}
    multi_head = source.heads == source.kv_groups
    if multi_head and "heads" in asked:
        asked.setdefault("kv_groups", asked["heads"])
    target = replace(source, **asked)
    named = [name for name in SIZES if name in asked and (name != "kv_groups" or not multi_head)]
    errors = [*_size_errors(source, target, named), *_divisor_errors(target, settings.multiple_of)]
    if not errors:
        errors = _head_errors(source, target, multi_head)
    if not errors and table.implied_head_size and (error := implied_head_size_error(target)):
        errors = [f"target: {error}"]
    if not errors and target == source:
        errors.append(
            "target: every size equals the source's, so there is nothing to prune; "
            "name at least one smaller size or remove the section"
        )
    return target, errors


def _size_errors(source: Shape, target: Shape, names: Sequence[str]) -> list[str]:
    errors = []
    for name in names:
        have, want = getattr(source, name), getattr(target, name)
        if want > have:
            errors.append(
                f"target.{name}: found {want}, but the source has {have}; "
                f"pruning only makes a model smaller, so give at most {have}"
            )
    return errors


def _divisor_errors(target: Shape, rules: Mapping[Size, int]) -> list[str]:
    errors = []
    for name, divisor in rules.items():
        key = f"target.multiple_of.{name}"
        if remainder := getattr(target, name) % divisor:
            found = getattr(target, name)
            below, above = found - remainder, found - remainder + divisor
            errors.append(
                f"target.{name}: found {found}, which is not a multiple of {divisor} as {key} "
                f"asks; give {f'{below} or ' if below else ''}{above}"
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
            f"target.heads: {target.heads} heads do not fit {target.kv_groups} KV groups; "
            f"give a multiple of {target.kv_groups}, or another target.kv_groups"
        ]
    if target.heads_per_group > source.heads_per_group:
        return [
            f"target.heads: {target.heads} heads in {target.kv_groups} KV groups are "
            f"{target.heads_per_group} a group, but the source has only {source.heads_per_group}; "
            f"give at most {target.kv_groups * source.heads_per_group} heads or more KV groups"
        ]
    return []
