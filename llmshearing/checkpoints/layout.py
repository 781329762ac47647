"""Where a run's checkpoints are, and which of them are whole.

    checkpoints/ba100.pt      a full checkpoint: one file
    checkpoints/ba200/        a sharded one: a folder with a file per rank
    checkpoints/ba200.json    the manifest of either, written last

A checkpoint is whole when its manifest is next to it. The manifest records its step and the
checkpoint's files with their sizes and checksums, so that a missing, truncated, damaged or
exchanged file is named before anything is read.
"""

import logging
import math
import re
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.manifest import RunManifest
from llmshearing.checksums import check_files
from llmshearing.errors import UserError
from llmshearing.files import json_lines
from llmshearing.quantities import steps
from llmshearing.yaml_files import read_yaml

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
METRICS = "metrics.jsonl"
PARTIAL = ".partial"
KINDS = ("full", "sharded")
CHECKPOINT_NAME = re.compile(r"ba\d+(\.pt)?")
MANIFEST_NAME = re.compile(r"ba\d+\.json")


def checkpoint_path(directory: str | Path, step: int, kind: str) -> Path:
    """The path of a run's checkpoint of a step; `kind` is `full` or `sharded`."""
    return Path(directory, FOLDER, f"ba{step}.pt" if kind == "full" else f"ba{step}")


def kind_of(checkpoint: str | Path) -> str:
    """`full` or `sharded`, from the path."""
    return "full" if Path(checkpoint).suffix == ".pt" else "sharded"


def step_of(checkpoint: str | Path) -> int:
    """The step at which a checkpoint (or manifest) `ba<N>` was written."""
    return int(Path(checkpoint).stem[2:])


def manifest_of(checkpoint: str | Path) -> Path:
    """The path of a checkpoint's manifest."""
    return Path(checkpoint).with_suffix(".json")


def whole_checkpoints(directory: str | Path) -> list[Path]:
    """A run directory's checkpoints that have a manifest, the oldest first."""
    found = _matching(directory, CHECKPOINT_NAME)
    return [path for path in found if manifest_of(path).is_file()]


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run directory, or None.

    Raises:
        UserError: there is a newer manifest without its checkpoint.
    """
    whole = whole_checkpoints(directory)
    latest = whole[-1] if whole else None
    for path in _matching(directory, MANIFEST_NAME):
        if latest is None or step_of(path) > step_of(latest):
            files = RunManifest.read(path).files
            missing = [name for name in files if not (path.parent / name).exists()]
            before = f"resume from {latest.name}" if latest else "start from the first step"
            raise UserError(
                f"{path} is there, but not its checkpoint: {', '.join(missing)} is missing from "
                f"{path.parent}. Put it back, or remove {path} to {before}"
            )
    for path in _matching(directory, CHECKPOINT_NAME):
        if latest is None or step_of(path) > step_of(latest):
            log.warning("ignoring %s: without %s it is not whole", path, manifest_of(path).name)
    return latest


def resumed_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint that a run resumes from; None for a new run.

    A run makes its folder of checkpoints before its first step, and writes the first checkpoint
    after `run.checkpoint_interval` steps. Without them, starting again would replace its metrics.

    Raises:
        UserError: a checkpoint was removed or is not whole.
    """
    latest, directory = latest_checkpoint(directory), Path(directory)
    file = directory / METRICS
    lines = json_lines(file.read_bytes()) if latest is None and file.is_file() else []
    if lines and ((logged := _steps(lines)) > _first_due(directory)):
        raise UserError(
            f"{file} has {logged} steps, but {directory / FOLDER} has no checkpoint to resume "
            "from. Put the checkpoints back; to start again, give another run.directory or remove "
            f"{file}"
        )
    return latest


def _steps(lines: list[dict[str, Any]]) -> int:
    return max(line.get("batch", 0) for line in lines)


def _first_due(directory: Path) -> float:
    """The last step that a run may have done without a checkpoint."""
    if not (directory / FOLDER).is_dir():
        return 0
    config = directory / "config.yaml"
    run = read_yaml(config).get("run") if config.is_file() else None
    try:
        return steps(str(run["checkpoint_interval"])) if isinstance(run, dict) else math.inf
    except (KeyError, ValueError):
        return math.inf


def find_checkpoint(path: str | Path) -> Path:
    """A run directory's latest checkpoint, or the checkpoint that `path` is.

    Raises:
        UserError: neither.
    """
    path = Path(path).expanduser()
    if path.is_file() or CHECKPOINT_NAME.fullmatch(path.name):
        return path
    latest = latest_checkpoint(path)
    if latest is not None:
        return latest
    partial = _matching(path, CHECKPOINT_NAME)
    if partial:
        raise UserError(
            f"found no checkpoint in {path} but {partial[-1].name} without its "
            f"{manifest_of(partial[-1]).name}: its writing was interrupted, or it was copied "
            "without its manifest. Train further, or copy the manifest too"
        )
    raise UserError(
        f"found no checkpoint in {path}; expected a run directory with checkpoints/ba<N>.pt "
        "(or the folder ba<N>) and its ba<N>.json, or the path of such a file or folder"
    )


def read_manifest(checkpoint: str | Path) -> RunManifest:
    """A checkpoint's manifest, known to be its own; all files are there in their sizes.

    Raises:
        UserError: there is no manifest, it is damaged or belongs to another checkpoint, or a file
            is missing or truncated.
    """
    checkpoint = Path(checkpoint)
    path = manifest_of(checkpoint)
    if not path.is_file():
        raise UserError(
            f"found no {path.name} next to {checkpoint}: its writing was interrupted, or it was "
            "copied without its manifest; copy that too, or take an earlier checkpoint"
        )
    manifest = RunManifest.read(path)
    owners = {name.split("/")[0] for name in manifest.files}
    named = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if owners - {checkpoint.name} or (named and manifest.batch != step_of(checkpoint)):
        raise UserError(
            f"{path} is the manifest of step {manifest.batch} ({', '.join(sorted(owners))}), not "
            f"of {checkpoint.name}; restore the checkpoint's own manifest, or remove {path} to use "
            "the checkpoint before it"
        )
    for name, record in manifest.files.items():
        file = checkpoint.parent / name
        size = file.stat().st_size if file.is_file() else None
        if size != record.bytes:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{file} {state}; {path.name} records {record.bytes} bytes, so this is not a whole "
                f"checkpoint. Restore the file, or remove {path} to use the checkpoint before it"
            )
    return manifest


def check_contents(checkpoint: str | Path) -> None:
    """Compare the checksums of a checkpoint's files. All ranks call it; each reads its share.

    Raises:
        UserError: on every rank, if a file has changed since it was written.
    """
    checkpoint = Path(checkpoint)
    manifest, path = read_manifest(checkpoint), manifest_of(checkpoint)
    if manifest.format == 0:
        log.info("%s has no checksums (format 0): only the sizes of its files were checked", path)
        return
    remedy = f"Restore it from a copy, or remove {path} to use the checkpoint before it"
    check_files(checkpoint.parent, manifest.files, path, remedy)


def _matching(directory: str | Path, name: re.Pattern[str]) -> list[Path]:
    """The entries of a run's folder of checkpoints with such a name, by step."""
    found = [path for path in Path(directory, FOLDER).glob("ba*") if name.fullmatch(path.name)]
    return sorted(found, key=step_of)
