"""Whether a checkpoint can go on under a recipe: same stage, model, target, tokenizer and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.layout import read_manifest
from llmshearing.config import leaves
from llmshearing.errors import UserError

STAGES = {True: "pruning", False: "continued pre-training"}


# What the masks of a checkpoint were learned by; with another they would mean something else.
OF_THE_MASKS = ("distribution", "constraint")
# What the checkpoint itself says, and a recipe only at the start of a run.
FROM_THE_CHECKPOINT = (
    "model.path",
    "model.initialize",
    "mixture.weights",
    "mixture.start_from",
    "mixture.start_with",
    "pruning.init_log_alpha",
    "pruning.importance",
    "pruning.importance_spread",
)


def check_fits(checkpoint: Path, facts: Mapping[str, Any]) -> list[str]:
    """Compare a checkpoint's manifest with what the run about itself says.

    Args:
        checkpoint: to go on from.
        facts: of the run, in the manifest's own form.

    Returns:
        What differs in the recipe and is no obstacle, and whether it takes effect.

    Raises:
        UserError: the checkpoint is not whole, or of another run.
    """
    found = read_manifest(checkpoint)
    misfit = _misfit(found, facts)
    if misfit:
        raise UserError(
            f"{checkpoint} {misfit}. Give another run.directory, or the recipe that wrote this one"
        )
    return _changes(found["recipe"], facts["recipe"])


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = _values(was), _values(now)
    changes = []
    for key in sorted(before.keys() | after.keys()):
        left, right = before.get(key), after.get(key)
        if left != right:
            fixed = any(key == one or key.startswith(f"{one}.") for one in FROM_THE_CHECKPOINT)
            effect = ", without effect: the checkpoint's counts" if fixed else ""
            changes.append(f"{key} was {left!r}, is {right!r}{effect}")
    return changes


def _values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, as JSON has them; an empty section has none."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(recipe).items()
        if not isinstance(value, Mapping)
    }


def _misfit(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What does not fit, the first of what there is."""
    target, own_target = found["recipe"]["target"], facts["recipe"]["target"]
    was, now = target is not None, own_target is not None
    if was != now:
        return f"is of {STAGES[was]}, but this recipe says {STAGES[now]}"
    model, own = found["source"], facts["source"]
    kind, own_kind = model["config"].get("model_type"), own["config"].get("model_type")
    if kind != own_kind:
        return f"is of another model: found {kind}, expected {own_kind} as model.path has it"
    for what, left, right in (
        ("of another model", model["shape"], own["shape"]),
        ("of another target", target or {}, own_target or {}),
    ):
        if left != right:
            return f"is {what}: {_differences(left, right)}"
    for name in OF_THE_MASKS if now else ():
        gate, own_gate = (recipe["pruning"][name] for recipe in (found["recipe"], facts["recipe"]))
        if gate != own_gate:
            return f"is of pruning.{name} {gate}, but this recipe says {own_gate}"
    data, own_data = found["data"], facts["data"]
    # Older manifests have the SHA-256 of the tokenizer's file as its fingerprint.
    if data["tokenizer"]["fingerprint"] not in own_data["tokenizer"].values():
        return (
            "is of another tokenizer than the one that data.root was prepared with: found "
            f"{data['tokenizer']['fingerprint'][:12]}, expected "
            f"{own_data['tokenizer']['fingerprint'][:12]}"
        )
    length, own_length = data["sequence_length"], own_data["sequence_length"]
    if length != own_length:
        return f"was trained on rows of {length} tokens, but data.root has rows of {own_length}"
    for what, part, own_part in (
        ("was trained on other data", data, own_data),
        ("was evaluated on other held-out data", data.get("held_out"), own_data["held_out"]),
    ):
        if part is None:
            continue  # old manifests do not record what was held out
        prints, own_prints = part["fingerprints"], own_part["fingerprints"]
        names = prints.keys() | own_prints.keys()
        other = sorted(n for n in names if prints.get(n) != own_prints.get(n))
        if other:
            return f"{what}: data.root differs in {', '.join(other)}"
    return ""


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = [n for n in {**found, **expected} if found.get(n) != expected.get(n)]
    return ", ".join(f"{n} found {found.get(n)}, expected {expected.get(n)}" for n in names)
