"""What a run, a checkpoint and an exported directory record about themselves, as JSON.

A manifest has a `format` and a `checksum` of its own content. Format 0, from before manifests had a
format, has neither. It is read as far as it goes, and never written.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from pydantic import TypeAdapter, ValidationError

from llmshearing.architecture.shape import Shape
from llmshearing.checksums import FileRecord
from llmshearing.errors import UserError
from llmshearing.files import write_json
from llmshearing.pruning.schedule import MaskState

FORMAT = 1
RUN_FILE = "manifest.json"  # in a run directory
EXPORT_FILE = "llmshearing.json"  # in an exported directory
SEAL = "checksum"

# Recipe keys and values of format 0 that have other names now.
SECTIONS = {"loading": "mixture"}
KEYS = {
    "mixture": {"mixture": "start_from", "mixture_of": "start_with"},
    "pruning": {"settle": "freeze", "choose": "fix_shape", "start": "init_log_alpha"},
}
VALUES = {
    "distribution": {"hard_concrete": "paper", "hard_concrete_released": "released"},
    "constraint": {"published": "paper"},
}


@dataclass(frozen=True)
class SourceRecord:
    """The Hugging Face directory that a model was made from."""

    path: str  # the directory
    shape: Shape  # its shape
    # its config, complete; empty in one-shot exports of format 0
    config: dict[str, Any] = field(default_factory=dict)
    repository: str | None = None  # `org/name@commit` on the hub; None for a directory


@dataclass(frozen=True)
class TeacherRecord:
    """The Hugging Face directory that a run distils from."""

    path: str  # the directory
    config: dict[str, Any]  # its config, complete
    weights: str  # a digest of its weight files


@dataclass(frozen=True)
class CacheRecord:
    """The cache of a teacher's distributions that a run distils from, in place of the teacher."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class HeldOutRecord:
    """Held-out data: a fingerprint per domain, and the most rows of each that are used."""

    fingerprints: dict[str, str]
    rows: int | None


@dataclass(frozen=True)
class DataRecord:
    """The data of a run."""

    root: str  # the data tree
    sequence_length: int  # tokens of a row
    # the tree's record of the tokenizer that made it, with its `fingerprint`
    tokenizer: dict[str, Any]
    fingerprints: dict[str, str]  # of the split that is trained on, by domain
    held_out: HeldOutRecord | None = None  # of the split that is evaluated; None in old manifests

    def evaluates_like(self, other: "DataRecord") -> bool:
        """Whether held-out losses on both can be compared: the same rows of the same tokens."""
        mine, its = (
            (data.held_out, data.sequence_length, data.tokenizer.get("fingerprint"))
            for data in (self, other)
        )
        return self.held_out is not None and mine == its


@dataclass(frozen=True)
class LossesAt:
    """When losses were measured, and whether on the model that export would write then."""

    batch: int
    exact: bool


@dataclass(frozen=True)
class RunManifest:
    """A run, or one of its checkpoints."""

    recipe: dict[str, Any]  # the resolved recipe
    source: SourceRecord  # the model that the run started from
    data: DataRecord  # what it was trained on
    tokens: int  # how many it trains on in all
    # the shape that it prunes to; None without pruning, and until a budget has one
    target: Shape | None = None
    batch: int = 0  # steps done
    # held-out loss per domain in nats per token, of the last evaluation
    losses: dict[str, float] = field(default_factory=dict)
    losses_at: LossesAt | None = None  # when that was; None before the first
    mixture: dict[str, Any] = field(default_factory=dict)  # weights, shares and passes per domain
    masks: MaskState | None = None  # the state of the mask schedule; None without pruning
    teacher: TeacherRecord | None = None  # that it distils from; None without distillation
    cache: CacheRecord | None = None  # of its distributions; None with the teacher in memory
    versions: dict[str, str] = field(default_factory=dict)  # of the packages
    # of a checkpoint, relative to the folder that holds it
    files: dict[str, FileRecord] = field(default_factory=dict)
    importance: FileRecord | None = None  # the run's file of scores; None if no unit was scored
    format: int = FORMAT  # of the manifest

    @classmethod
    def read(cls, path: Path) -> "RunManifest":
        """Read a file.

        Raises:
            UserError: it is not such a manifest, is of a newer format, or has been changed.
        """
        return _read(path, cls)

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        write_json(path, sealed(dataclasses.asdict(self)))

    def differences(self, now: "RunManifest") -> list[str]:
        """What keeps a checkpoint with this manifest from being resumed by the run `now`.

        Returns:
            `WHAT: found ..., expected ...`; empty if it can be resumed.
        """
        was_target, target = self.recipe["target"], now.recipe["target"]
        if (was_target is None) != (target is None):
            was, own = (
                "continued pre-training" if one is None else "pruning"
                for one in (was_target, target)
            )
            return [f"stage: found {was}, expected {own}"]
        found = _unequal("model", self.source.config, now.source.config, ["model_type"])
        found += _unequal("model", vars(self.source.shape), vars(now.source.shape))
        found += _unequal("target", was_target or {}, target or {})
        if target is not None:
            learned_by = ["distribution", "constraint"]  # masks mean nothing under another
            found += _unequal("pruning", self.recipe["pruning"], now.recipe["pruning"], learned_by)
        # The fingerprint of format 0 is that of the tokenizer's file, which is recorded as well.
        if self.data.tokenizer["fingerprint"] not in now.data.tokenizer.values():
            found += _unequal("tokenizer", self.data.tokenizer, now.data.tokenizer, ["fingerprint"])
        found += _unequal("data", vars(self.data), vars(now.data), ["sequence_length"])
        found += _unequal("training data", self.data.fingerprints, now.data.fingerprints)
        before, after = (
            {} if one is None else {**one.config, "weights": one.weights}
            for one in (self.teacher, now.teacher)
        )
        found += _unequal("teacher", before, after, ["model_type", "hidden_size", "weights"])
        before, after = ({} if one is None else vars(one) for one in (self.cache, now.cache))
        found += _unequal("teacher cache", before, after, ["fingerprint"])
        if self.data.held_out and now.data.held_out:
            before, after = self.data.held_out.fingerprints, now.data.held_out.fingerprints
            found += _unequal("held-out data", before, after)
        return found


@dataclass(frozen=True)
class ExportManifest:
    """A Hugging Face directory that this project wrote."""

    source: SourceRecord  # the model that was pruned or trained
    shape: Shape  # of the model in the directory
    dtype: str  # of its weights
    kept: dict[str, Any]  # per axis name the units that stay, in the source's numbering
    files: dict[str, FileRecord]  # its weight files; none in format 0
    # per axis name, how many `units` there are and how many were `undecided`
    undecided: dict[str, dict[str, int]] = field(default_factory=dict)
    # largest difference of its logits from the gated model's; None if it was not verified
    logits_difference: float | None = None
    method: str | None = None  # of one-shot pruning; None for a run
    checkpoint: str | None = None  # name of the run's checkpoint; None for one-shot pruning
    run: RunManifest | None = None  # the checkpoint's manifest; None for one-shot pruning
    format: int = FORMAT  # of the manifest

    @classmethod
    def read(cls, directory: Path) -> "ExportManifest | None":
        """Read the manifest of a directory; None if it has none.

        Raises:
            UserError: it is not such a manifest, is of a newer format, or has been changed.
        """
        path = directory / EXPORT_FILE
        return _read(path, cls) if path.is_file() else None

    def write(self, directory: Path) -> None:
        """Write the manifest of a directory, whole or not at all."""
        write_json(directory / EXPORT_FILE, sealed(dataclasses.asdict(self)))


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as JSON has it, with the checksum of its own content."""
    plain = json.loads(json.dumps(manifest))
    return {**plain, SEAL: _seal(plain)}


def _seal(plain: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())


M = TypeVar("M", RunManifest, ExportManifest)


def _read(path: Path, kind: type[M]) -> M:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        found = content.get("format", 0)
        if found not in range(FORMAT + 1):
            raise UserError(
                f"{path} has format {found}, expected at most {FORMAT}: it was written by a newer "
                "version; use that one"
            )
        if found == 0:
            content = (
                _run_of_format_0(content) if kind is RunManifest else _export_of_format_0(content)
            )
        elif content.pop(SEAL, None) != _seal(content):
            raise ValueError("its content is not what its checksum says")
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()[:3]]
        reason = "; ".join(wrong)
    except (ValueError, AttributeError, TypeError) as error:
        reason = str(error)
    what = "a run" if kind is RunManifest else "an export"
    raise UserError(f"{path} is not a whole manifest of {what} ({reason}); restore or remove it")


def _run_of_format_0(content: Mapping[str, Any]) -> dict[str, Any]:
    content = dict(content)
    if isinstance(content.get("recipe"), dict):
        recipe = _renamed(content["recipe"], SECTIONS)
        content["recipe"] = {
            name: _renamed(value, KEYS.get(name, {})) if isinstance(value, dict) else value
            for name, value in recipe.items()
        }
        pruning = content["recipe"].get("pruning", {})
        pruning |= {k: VALUES[k].get(pruning[k], pruning[k]) for k in VALUES.keys() & pruning}
    if isinstance(content.get("masks"), dict):
        content["masks"] = _renamed(content["masks"], {"settled": "frozen"})
    content["losses_at"] = content.get("losses_at") or None
    files = content.get("files", {}).items()
    return {**content, "files": {name: {"bytes": size} for name, size in files}, "format": 0}


def _export_of_format_0(content: Mapping[str, Any]) -> dict[str, Any]:
    run = _run_of_format_0(content) if "recipe" in content else None
    verified = content.get("verified") or {}
    return {**content, "run": run, "files": {}, "format": 0} | {
        "logits_difference": verified.get("logits_difference")
    }


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _unequal(
    what: str, was: Mapping[str, Any], now: Mapping[str, Any], names: list[str] | None = None
) -> list[str]:
    """Where two mappings differ; fingerprints are shortened."""
    return [
        f"{what} {name}: found {_short(was.get(name))}, expected {_short(now.get(name))}"
        for name in names or {**was, **now}
        if was.get(name) != now.get(name)
    ]


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
