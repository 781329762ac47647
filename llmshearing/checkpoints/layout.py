"""Where a run's checkpoints are, and which of them are whole.

    checkpoints/ba100.pt      a full checkpoint: one file
    checkpoints/ba200/        a sharded one: a folder with a file per rank
    checkpoints/ba200.json    the manifest of either, written last

A checkpoint is whole when its manifest is next to it. The manifest records its step and the
checkpoint's files with their sizes and checksums, so that a missing, truncated, damaged or
exchanged file is named before anything is read.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from llmshearing.checksums import BYTES, check_files, is_sealed
from llmshearing.errors import UserError

log = logging.getLogger(__name__)

# Of manifests. Format 0, before there was an entry `format`, has sizes but no checksums.
FORMAT = 1
FOLDER = "checkpoints"
FILES = "files"  # the manifest's entry: size and checksum by path relative to FOLDER
PARTIAL = ".partial"
KINDS = ("full", "sharded")
CHECKPOINT_NAME = re.compile(r"ba\d+(\.pt)?")


def checkpoint_path(directory: str | Path, step: int, kind: str) -> Path:
    """The path of a run's checkpoint of a step; `kind` is `full` or `sharded`."""
    return Path(directory, FOLDER, f"ba{step}.pt" if kind == "full" else f"ba{step}")


def kind_of(checkpoint: str | Path) -> str:
    """`full` or `sharded`, as the path says."""
    return "full" if Path(checkpoint).suffix == ".pt" else "sharded"


def step_of(checkpoint: str | Path) -> int:
    """The step at which a checkpoint `ba<N>.pt` or `ba<N>` was written."""
    return int(Path(checkpoint).stem[2:])


def manifest_of(checkpoint: str | Path) -> Path:
    """The JSON that makes a checkpoint whole."""
    return Path(checkpoint).with_suffix(".json")


def whole_checkpoints(directory: str | Path) -> list[Path]:
    """A run directory's checkpoints that have a manifest, the oldest first."""
    found = []
    for manifest in Path(directory, FOLDER).glob("ba*.json"):
        if not manifest.stem[2:].isdigit():
            continue
        candidates = (manifest.with_suffix(".pt"), manifest.with_suffix(""))
        found += [path for path in candidates if path.exists()]
    return sorted(found, key=step_of)


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run directory, or None.

    Raises:
        UserError: the newest manifest has lost its checkpoint.
    """
    whole = whole_checkpoints(directory)
    latest = whole[-1] if whole else None
    step = step_of(latest) if latest else -1
    for path in sorted(Path(directory, FOLDER).glob("ba*"), key=lambda path: path.name):
        if path.suffix == ".json" and path.stem[2:].isdigit() and step_of(path) > step:
            missing = [
                name for name in _load(path).get(FILES, {}) if not (path.parent / name).exists()
            ]
            before = f"resume from {latest.name}" if latest else "start from the first step"
            raise UserError(
                f"{path} is there, but not its checkpoint: {', '.join(missing)} is missing from "
                f"{path.parent}. Put it back, or remove {path} to {before}"
            )
        if CHECKPOINT_NAME.fullmatch(path.name) and step_of(path) > step:
            log.warning("ignoring %s: without %s it is not whole", path, manifest_of(path).name)
    return latest


def find_checkpoint(path: str | Path) -> Path:
    """A run directory's latest checkpoint, or the checkpoint that `path` is.

    Raises:
        UserError: neither.
    """
    path = Path(path)
    if path.is_file() or CHECKPOINT_NAME.fullmatch(path.name):
        return path
    latest = latest_checkpoint(path)
    if latest is not None:
        return latest
    alone = [entry for entry in Path(path, FOLDER).glob("ba*") if CHECKPOINT_NAME.match(entry.name)]
    if alone:
        newest = max(alone, key=step_of)
        raise UserError(
            f"found no checkpoint in {path} but {newest.name} without its "
            f"{manifest_of(newest).name}: it was cut short or comes from elsewhere. Train on, or "
            "put the manifest beside it"
        )
    raise UserError(
        f"found no checkpoint in {path}; expected a run directory with checkpoints/ba<N>.pt "
        "(or the folder ba<N>) and its ba<N>.json, or the path of such a file or folder"
    )


def read_manifest(checkpoint: str | Path) -> dict[str, Any]:
    """A checkpoint's manifest, known to be its own; all files are there in their sizes.

    Raises:
        UserError: there is no manifest, it is damaged or belongs to another checkpoint, or a file
            is missing or truncated.
    """
    checkpoint = Path(checkpoint)
    path = manifest_of(checkpoint)
    if not path.is_file():
        raise UserError(
            f"found no {path.name} next to {checkpoint}: this checkpoint was cut short or comes "
            "from elsewhere; take an earlier one"
        )
    manifest = _load(path)
    files = manifest.get(FILES, {})
    names = {name.split("/")[0] for name in files}
    step = manifest.get("batch")
    named = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if names - {checkpoint.name} or (named and step not in (None, step_of(checkpoint))):
        raise UserError(
            f"{path} is the manifest of step {step} ({', '.join(sorted(files))}), not of "
            f"{checkpoint.name}; put the checkpoint's own manifest there, or remove {path} to use "
            "the checkpoint before it"
        )
    for name, record in files.items():
        size = record[BYTES] if isinstance(record, dict) else record
        _check_file(checkpoint.parent / name, size, path)
    return manifest


def check_contents(checkpoint: str | Path) -> None:
    """Compare the checksums of a checkpoint's files. All ranks call it; each reads its share.

    Raises:
        UserError: on every rank, if a file has changed since it was written.
    """
    checkpoint = Path(checkpoint)
    manifest, path = read_manifest(checkpoint), manifest_of(checkpoint)
    if manifest.get("format", 0) == 0:
        log.info("%s has no checksums (format 0): only the sizes of its files were checked", path)
        return
    remedy = f"Restore it from a copy, or remove {path} to use the checkpoint before it"
    check_files(checkpoint.parent, manifest[FILES], path, remedy)


def _load(path: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        UserError: it is no JSON object, of a newer format, or has changed since it was written.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        trouble = None if isinstance(manifest, dict) else "it holds no object"
    except ValueError as error:
        manifest, trouble = {}, str(error)
    found = manifest.get("format", 0) if trouble is None else 0
    if found not in range(FORMAT + 1):
        raise UserError(
            f"{path} has format {found}, expected at most {FORMAT}: it was written by a newer "
            "version; use that one"
        )
    if found > 0 and not is_sealed(manifest):
        trouble = "its content is not what its checksum says"
    if trouble is not None:
        raise UserError(
            f"{path} is not a whole manifest ({trouble}); put it back, or remove it to use the "
            "checkpoint before it"
        )
    return manifest


def _check_file(file: Path, size: int, manifest: Path) -> None:
    found = file.stat().st_size if file.is_file() else None
    if found == size:
        return
    state = "is missing" if found is None else f"has {found} bytes"
    raise UserError(
        f"{file} {state}; expected {size} bytes, as {manifest.name} says, so this is not a whole "
        f"checkpoint. Put the file back, or remove {manifest} to use the checkpoint before it"
    )
