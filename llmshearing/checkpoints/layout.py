"""Where a run's checkpoints lie, and which of them are whole.

    checkpoints/ba100.pt      a full checkpoint: one file
    checkpoints/ba200/        a sharded one: a folder with a file per rank
    checkpoints/ba200.json    the manifest of either, written last

A checkpoint is whole when its manifest stands beside it. The manifest lists the files that belong
to the checkpoint with their sizes, so that one that was lost or cut later is named before anything
is read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError

FOLDER = "checkpoints"
FILES = "files"  # the manifest's entry: sizes in bytes by path relative to the checkpoint's folder
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
    """The newest whole checkpoint of a run directory, or None."""
    return next(reversed(whole_checkpoints(directory)), None)


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
    """A checkpoint's manifest, once all files that it lists are there in their sizes.

    Raises:
        UserError: no manifest, one that is cut short, or a file is missing or cut short.
    """
    checkpoint = Path(checkpoint)
    path = manifest_of(checkpoint)
    if not path.is_file():
        raise UserError(
            f"found no {path.name} beside {checkpoint}: this checkpoint was cut short or comes "
            "from elsewhere; take an earlier one"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is no whole manifest ({error}); put it back, or remove it to use the "
            "checkpoint before it"
        ) from error
    for name, size in manifest.get(FILES, {}).items():
        _check_file(checkpoint.parent / name, size, path)
    return manifest


def sizes(checkpoint: Path) -> dict[str, int]:
    """Sizes in bytes of a checkpoint's files, by path relative to the folder that holds it."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())
    return {str(path.relative_to(checkpoint.parent)): path.stat().st_size for path in files}


def _check_file(file: Path, size: int, manifest: Path) -> None:
    found = file.stat().st_size if file.is_file() else None
    if found == size:
        return
    state = "is missing" if found is None else f"has {found} bytes"
    raise UserError(
        f"{file} {state}; expected {size} bytes, as {manifest.name} says, so this is not a whole "
        f"checkpoint. Put the file back, or remove {manifest} to use the checkpoint before it"
    )
