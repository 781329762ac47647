"""Putting a checkpoint on disk: under a temporary name, then renamed, then declared whole."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from llmshearing.checkpoints.layout import (
    CHECKPOINT_NAME,
    FOLDER,
    KINDS,
    PARTIAL,
    checkpoint_path,
    manifest_of,
    step_of,
    whole_checkpoints,
)
from llmshearing.checkpoints.manifest import FORMAT, RunManifest
from llmshearing.checksums import record_files
from llmshearing.errors import UserError

TRAINER_FILE = "trainer.pt"  # of a sharded checkpoint: everything that is not a tensor of the model
Tensors = Mapping[str, Any]  # nested: names to tensors or to more names


def write_full(path: Path, state: Mapping[str, Any], manifest: RunManifest) -> None:
    """Write one file from the first rank. Every rank calls it; only the first needs the content.

    Args:
        path: the checkpoint's, `ba<N>.pt`.
        state: what to save, tensors and plain values.
        manifest: of the run at this step; written last, it makes the checkpoint whole.

    Raises:
        UserError: on every rank, where it cannot be written.
    """
    temporary = partial(path)

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        forget(path)
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())

    on_first_rank(write, path)
    _publish(path, [temporary] if _rank() == 0 else [], manifest)


def write_sharded(
    path: Path, tensors: Tensors, rest: Mapping[str, Any], manifest: RunManifest
) -> None:
    """Write a folder, every rank its own part.

    Args:
        path: the checkpoint's, `ba<N>`.
        tensors: of the model and the optimizer, sharded where they are.
        rest: plain values and small tensors, from the first rank.
        manifest: of the run at this step; written last, it makes the checkpoint whole.

    Raises:
        UserError: on every rank, where it cannot be written.
    """
    temporary = partial(path)

    def prepare() -> None:
        forget(path)
        temporary.mkdir(parents=True)
        with (temporary / TRAINER_FILE).open("wb") as file:
            torch.save(dict(rest), file)
            file.flush()
            os.fsync(file.fileno())

    on_first_rank(prepare, path)
    try:
        with without_remarks():
            dcp.save(dict(tensors), storage_writer=_Writer(temporary))
    except CheckpointException as error:
        on_first_rank(lambda: forget(path), path)
        cause = next(iter(error.failures.values()))[0]
        raise UserError(cannot_write(path, cause)) from error
    _publish(path, _written_here(temporary), manifest)


def on_first_rank(action: Callable[[], None], path: Path) -> None:
    """Let the first rank act; all ranks go on after it, or all end with its trouble.

    Raises:
        UserError: on every rank, where the action could not write.
    """
    trouble: list[str | None] = [None]
    if _rank() == 0:
        try:
            action()
        except (OSError, RuntimeError) as error:
            trouble[0] = cannot_write(path, error)
            _try_to_forget(path)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(trouble, src=0)
    if trouble[0] is not None:
        raise UserError(trouble[0])


def _publish(path: Path, written: list[Path], manifest: RunManifest) -> None:
    """Record every rank's files, give the checkpoint its name, and write the manifest."""
    temporary = partial(path)
    own = {str(path.name / file.relative_to(temporary)): file for file in written}
    files = record_files(own)

    def publish() -> None:
        temporary.replace(path)
        replace(manifest, files=files, format=FORMAT).write(manifest_of(path))

    on_first_rank(publish, path)


def _written_here(folder: Path) -> list[Path]:
    """The files of a sharded checkpoint that this rank wrote, so that no rank waits for another's.

    They are `__RANK_NUMBER.distcp`; the first rank also wrote the index and TRAINER_FILE.
    """
    own = sorted(folder.glob(f"__{_rank()}_*"))
    if _rank() == 0:
        own += [file for file in folder.iterdir() if not file.name.startswith("__")]
    return own


def forget(path: Path) -> None:
    """Remove what there is of a step's checkpoint, of either kind; its manifest goes first."""
    manifest_of(path).unlink(missing_ok=True)
    for kind in KINDS:
        same = checkpoint_path(path.parents[1], step_of(path), kind)
        for each in (same, partial(same)):
            _remove(each)


def keep_last(directory: Path, count: int) -> None:
    """Remove all but the newest whole checkpoints of a run, and what was cut short.

    Args:
        directory: the run's.
        count: how many stay; -1 keeps all that are whole.
    """
    whole = whole_checkpoints(directory)
    for path in whole[: max(0, len(whole) - count)] if count >= 0 else []:
        manifest_of(path).unlink()
    for path in (directory / FOLDER).iterdir():
        name = path.name.removeprefix(".").removesuffix(PARTIAL)
        cut_short = name != path.name or not manifest_of(path).is_file()
        if CHECKPOINT_NAME.fullmatch(name) and cut_short:
            _remove(path)


def check_writable(directory: Path) -> None:
    """Try to write into a run's folder of checkpoints, before anything was trained in vain.

    Raises:
        UserError: it cannot be written.
    """
    folder = directory / FOLDER
    probe = folder / f".probe{PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # all ranks try
    except OSError as error:
        raise UserError(
            f"run.directory: cannot write checkpoints into {folder}: {error.strerror or error}; "
            "give a directory that can be written"
        ) from error


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keep torch's remarks on its own storage classes, and that one process is one, to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


def partial(path: Path) -> Path:
    """The name that a checkpoint has while it is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def cannot_write(path: Path, error: BaseException) -> str:
    """What to say when the disk says no."""
    system = _system_error(error)
    cause = system.strerror if system else str(error).splitlines()[0]
    folder = path.parent
    free = f"; {shutil.disk_usage(folder).free >> 20} MiB are free there" if folder.is_dir() else ""
    whole = whole_checkpoints(folder.parent)
    go_on = f"goes on from {whole[-1].name}" if whole else "begins anew: no checkpoint is whole yet"
    return (
        f"cannot write the checkpoint {path}: {cause}{free}. Make room or mend the folder, then "
        f"start the run again: it {go_on}"
    )


class _Writer(dcp.FileSystemWriter):
    """Tells the operating system's own error, which is lost on the way to the other ranks."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause = _system_error(error)
            raise error if cause is None else OSError(cause.errno, cause.strerror) from error


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind one of torch, which says only that a position is off."""
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.strerror):
        seen = seen.__cause__ or seen.__context__
    return seen


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _try_to_forget(path: Path) -> None:
    try:
        forget(path)
    except OSError:
        return  # a folder that refuses writes has nothing half-written either


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
