"""Files that are complete or absent: written under a temporary name, then renamed."""

import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import psutil

from llmshearing.errors import UserError

log = logging.getLogger(__name__)

# How a file begins that Git LFS or git-annex leaves in place of a large one.
POINTERS = (b"version https://git-lfs", b"../.git/annex/objects", b"/annex/objects")
LOCK = ".lock"
LOCK_PATIENCE_SECONDS = 2.0  # a killed owner may take a moment to die


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the whole new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` on success and is removed on failure.

    Until then its name is `temporary`, by default one next to `path`. An OSError names `path`.
    """
    temporary = temporary or _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def refuse_pointer(path: Path) -> None:
    """Refuse the pointer that Git LFS or git-annex leaves in a file's place with a UserError."""
    with path.open("rb") as file:
        if file.read(256).startswith(POINTERS):
            raise UserError(
                f"{path} is a pointer to a large file, not the file; run `git lfs pull` or "
                "`git annex get`"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; a UserError if it holds something else."""
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; copy or download it again")
    return value


def json_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines, without an incomplete line (one being written, or cut off)."""
    found = []
    for line in content.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` on success and is removed on failure.

    Raises:
        FileExistsError: `path` exists and is not an empty directory.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(path: Path) -> Path:
    """A name next to `path` that this process writes under.

    What killed processes of this machine left under such names is removed.
    """
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host)}.*.partial"):
        process = int(left.name.removesuffix(".partial").rpartition(".")[2])
        if process == os.getpid() or not psutil.pid_exists(process):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.partial")


@contextmanager
def lock_directory(path: str | Path, *, shared: bool = False) -> Iterator[None]:
    """Own the directory `path` until the block or the process ends, even if it is killed.

    Any number of processes may have it as `shared`, but not while another one owns it alone.

    The lock is a POSIX record lock on `path/.lock`. The kernel releases it with the process, so it
    is never stale; forked children do not inherit it; and it works across machines on NFS. A file
    system without locks only gets a warning. The file stays: it names the last owner.

    Raises:
        UserError: another process owns the directory; the message names it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("a+", encoding="utf-8") as file:
        try:
            _acquire(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(
                    f"{path} is in use by {owner}. Wait until it ends, stop it, or give another "
                    "directory"
                ) from None
            log.warning(
                "cannot lock %s (%s): nothing prevents a second process from writing to it",
                path,
                error.strerror,
            )
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()}, "
            f"started {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        )
        file.flush()
        yield


def _acquire(file: TextIO, kind: int) -> None:
    """Lock a file; EACCES or EAGAIN if another process still has it after a moment."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            return fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
