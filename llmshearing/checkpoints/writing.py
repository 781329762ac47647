"""Writes checkpoints: under a temporary name, then renamed, then made whole by a manifest."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
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


def write_full(path: Path, state: Mapping[str, Any], manifest: RunManifest) -> None:
    """Write a checkpoint `ba<N>.pt`, its manifest last.

    All ranks call it; only the first needs the content.

    Raises:
        UserError: on every rank, if it cannot be written.
    """
    temporary = _partial(path)

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _forget(path)
        _save(state, temporary)

    on_first_rank(write, path)
    _publish(path, [temporary] if _rank() == 0 else [], manifest)


def write_sharded(
    path: Path, tensors: Mapping[str, Any], rest: Mapping[str, Any], manifest: RunManifest
) -> None:
    """Write a checkpoint as a folder `ba<N>`, each rank its own part, its manifest last.

    All ranks call it. `tensors` are those of the model and the optimizer by nested names, and may
    be sharded; `rest`, from the first rank, is plain values and small tensors.

    Raises:
        UserError: on every rank, if it cannot be written.
    """
    temporary = _partial(path)

    def prepare() -> None:
        _forget(path)
        temporary.mkdir(parents=True)
        _save(rest, temporary / TRAINER_FILE)

    on_first_rank(prepare, path)
    try:
        with without_torch_warnings():
            dcp.save(dict(tensors), storage_writer=_Writer(temporary))
    except CheckpointException as error:
        on_first_rank(lambda: _forget(path), path)
        cause = next(iter(error.failures.values()))[0]
        raise UserError(_cannot_write(path, cause)) from error
    # Each rank records the files it wrote (`__RANK_NUMBER.distcp`), so it need not see the others'.
    written = sorted(temporary.glob(f"__{_rank()}_*"))
    if _rank() == 0:
        written += [file for file in temporary.iterdir() if not file.name.startswith("__")]
    _publish(path, written, manifest)


def on_first_rank(action: Callable[[], None], path: Path) -> None:
    """Run an action of writing the checkpoint `path` on the first rank; all ranks wait for it.

    Raises:
        UserError: on every rank, if the action could not write.
    """
    problem: list[str | None] = [None]
    if _rank() == 0:
        try:
            action()
        except (OSError, RuntimeError) as error:
            problem[0] = _cannot_write(path, error)
            with contextlib.suppress(OSError):
                _forget(path)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise UserError(problem[0])


def keep_last(directory: Path, count: int) -> None:
    """Remove all but the newest whole checkpoints (-1 keeps all), and everything incomplete."""
    whole = whole_checkpoints(directory)
    for path in whole[: max(0, len(whole) - count)] if count >= 0 else []:
        manifest_of(path).unlink()
    for path in (directory / FOLDER).iterdir():
        name = path.name.removeprefix(".").removesuffix(PARTIAL)
        incomplete = name != path.name or not manifest_of(path).is_file()
        if CHECKPOINT_NAME.fullmatch(name) and incomplete:
            _remove(path)


def check_writable(directory: Path) -> None:
    """Try to write into a run's folder of checkpoints; a UserError if that is not possible."""
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


@contextlib.contextmanager
def without_torch_warnings() -> Iterator[None]:
    """Silence torch's warnings about its own storage classes and about runs of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


class _Writer(dcp.FileSystemWriter):
    """Reports the operating system's own error, which torch loses on the way to other ranks."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause = _system_error(error)
            raise error if cause is None else OSError(cause.errno, cause.strerror) from error


def _save(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def _publish(path: Path, written: list[Path], manifest: RunManifest) -> None:
    """Record the files that each rank wrote, rename the checkpoint and write its manifest."""
    temporary = _partial(path)
    own = {str(path.name / file.relative_to(temporary)): file for file in written}
    files = record_files(own)

    def publish() -> None:
        temporary.replace(path)
        replace(manifest, files=files, format=FORMAT).write(manifest_of(path))

    on_first_rank(publish, path)


def _forget(path: Path) -> None:
    """Remove all there is of a step's checkpoint, of either kind; its manifest first."""
    manifest_of(path).unlink(missing_ok=True)
    for kind in KINDS:
        same = checkpoint_path(path.parents[1], step_of(path), kind)
        for each in (same, _partial(same)):
            _remove(each)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """The name that a checkpoint has while it is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def _cannot_write(path: Path, error: BaseException) -> str:
    system = _system_error(error)
    cause = system.strerror if system else str(error).splitlines()[0]
    folder = path.parent
    free = f"; {shutil.disk_usage(folder).free >> 20} MiB are free there" if folder.is_dir() else ""
    whole = whole_checkpoints(folder.parent)
    resumed = f"resumes from {whole[-1].name}" if whole else "starts again: no checkpoint is whole"
    return (
        f"cannot write the checkpoint {path}: {cause}{free}. Free some space or repair the folder, "
        f"then run the same command again: it {resumed}"
    )


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind one of torch, which only says that a position is off."""
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.strerror):
        seen = seen.__cause__ or seen.__context__
    return seen


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
