"""Writing files whole, and the lock on a directory: one owner at a time, never a stale one."""

import errno
import fcntl
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from llmshearing import files
from llmshearing.errors import UserError
from llmshearing.files import lock_directory

# Takes the lock, starts a child that outlives it, and says the child's number.
OWNER = """
import os, subprocess, sys, time
from llmshearing.files import lock_directory
with lock_directory(sys.argv[1]):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns `tmp_path/run`, and the child it has forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_name_of_the_owner(owner, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    named = re.escape(f"process {owner.pid} on {socket.gethostname()}, started 2")
    for _ in range(2):  # the refused one does not change who is named
        with pytest.raises(UserError, match=named), lock_directory(tmp_path / "run"):
            pytest.fail("two processes own the directory")


def test_a_killed_owner_leaves_no_lock_even_if_its_child_lives(owner, tmp_path):
    owner.kill()
    with lock_directory(tmp_path / "run"):
        (owner_line,) = (tmp_path / "run" / files.LOCK).read_text().splitlines()
        assert owner_line.startswith(f"process {os.getpid()} on")
    assert owner.wait() == -signal.SIGKILL


def test_the_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with lock_directory(tmp_path / "run"):
            pass
    script = "import sys; from llmshearing.files import lock_directory as l\nwith l(sys.argv[1]): 0"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=True)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(logging.getLogger("llmshearing"), "propagate", True)
    with lock_directory(tmp_path / "run"):
        assert "(No locks available): nothing prevents a second process" in caplog.text


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from llmshearing.files import new_directory, write_bytes
path = Path(sys.argv[1])
if path.suffix:
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    write_bytes(path, b"half")
with new_directory(path) as folder:
    (folder / "part").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["manifest.json", "exported"])
def test_the_next_writer_removes_what_a_killed_one_left(name, tmp_path):
    path = tmp_path / name
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1  # its temporary name
    assert not path.exists()
    if path.suffix:
        files.write_bytes(path, b"whole")
    else:
        with files.new_directory(path) as folder:
            (folder / "part").write_bytes(b"whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_running_writer_keeps_its_temporary_file(tmp_path):
    path, parent = tmp_path / "manifest.json", os.getppid()
    other = tmp_path / f".manifest.json.{socket.gethostname()}.{parent}.partial"
    other.write_bytes(b"half")
    files.write_bytes(path, b"whole")
    assert other.exists()


def test_the_umask_decides_who_may_read_a_file_or_directory(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "manifest.json", "{}")
        with files.new_directory(tmp_path / "exported"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "exported").stat().st_mode & 0o777 == 0o750
