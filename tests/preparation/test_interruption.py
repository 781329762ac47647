"""Killed at any moment, the same command resumes and writes the same tree."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from corpus import PREP, contents, prepare, text, write_jsonl

from llmshearing.data.tree import DataTree
from llmshearing.errors import UserError


def kill_in(config, seconds, folder):
    """Start the command in a process group of its own, and kill its main process."""
    run = subprocess.Popen(
        [sys.executable, str(PREP / "prepare.py"), str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        run.wait()
        if not (folder / "manifest.json").exists():
            with pytest.raises(UserError, match=r"unfinished|no data tree"):
                DataTree.open(folder)
        return True
    assert run.returncode == 0
    return False


def workers_left(session):
    """Count live processes of a session."""
    left = 0
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:  # noqa: PTH123
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            left += int(fields[3]) == session and fields[0] != "Z"
    return left


def run_with_kills(config, source, tmp_path, kills, processes, documents):
    for number in range(6):
        texts = [text(1000 * number + i, 200) for i in range(documents)]
        write_jsonl(source / "web" / f"more{number}.jsonl", texts)
    settings = {**json.loads(config.read_text()), "unit_bytes": 40_000, "processes": processes}
    config.write_text(json.dumps(settings))
    begin = time.monotonic()
    assert prepare(config, f"output={tmp_path / 'whole'}") == 0
    usual = time.monotonic() - begin
    wanted = contents(tmp_path / "whole")
    draw = random.Random(processes)
    killed = 0
    while killed < kills:
        # The start of Python is no work; from there on any moment will do.
        if kill_in(config, 0.2 + draw.random() * (usual + 1.5), tmp_path / "tree"):
            killed += 1
        if draw.random() < 0.3 or (tmp_path / "tree" / "manifest.json").exists():
            assert prepare(config) == 0
            assert contents(tmp_path / "tree") == wanted
            for path in sorted((tmp_path / "tree").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (tmp_path / "tree").rmdir()
    assert prepare(config) == 0
    assert contents(tmp_path / "tree") == wanted


def test_a_killed_run_resumes(config, source, tmp_path):
    run_with_kills(config, source, tmp_path, kills=1, processes=1, documents=20)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_twenty_times_resumes(config, source, tmp_path, processes):
    run_with_kills(config, source, tmp_path, kills=20, processes=processes, documents=300)


@pytest.mark.parametrize("moment", ["units", "shards", "indexes", "cleaning"])
def test_an_error_at_each_stage_can_be_resumed(config, tmp_path, monkeypatch, moment):
    """An error in the middle of each stage, instead of a kill at a random moment."""
    from llmshearing.preparation import finish, packing, units

    class StopError(Exception):
        pass

    calls = 0

    def stops_at(limit, work):
        def stopping(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise StopError
            return work(*arguments, **options)

        return stopping

    assert prepare(config, f"output={tmp_path / 'whole'}") == 0
    with monkeypatch.context() as patch:
        if moment == "units":
            patch.setattr(units.np, "save", stops_at(14, units.np.save))  # three arrays a unit
        elif moment == "shards":
            patch.setattr(packing, "pack", stops_at(4, packing.pack))
        elif moment == "indexes":
            patch.setattr(finish, "_write", stops_at(3, finish._write))
        else:
            patch.setattr(finish.shutil, "rmtree", stops_at(4, finish.shutil.rmtree))
        with pytest.raises(StopError):
            prepare(config)
    if moment == "cleaning":
        assert (tmp_path / "tree" / ".prepare").exists()
    else:
        with pytest.raises(UserError, match="unfinished"):
            DataTree.open(tmp_path / "tree")
    assert prepare(config) == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["index.json", "bad_documents.jsonl", "manifest.json"])
def test_a_kill_before_a_rename_leaves_no_partial_file(config, tmp_path, name):
    """The process ends, without a chance to clean up, just before the file gets its name."""
    ends = (
        "import os, sys, pathlib; replace = pathlib.Path.replace\n"
        "def ending(self, target):\n"
        f"    os._exit(9) if pathlib.Path(target).name == {name!r} else replace(self, target)\n"
        "pathlib.Path.replace = ending\n"
        "from llmshearing.cli import main; sys.exit(main(['prepare', *sys.argv[1:]]))"
    )
    done = subprocess.run([sys.executable, "-c", ends, str(config)], check=False, timeout=120)
    assert done.returncode == 9
    assert prepare(config) == 0
    assert prepare(config, f"output={tmp_path / 'whole'}") == 0
    assert contents(tmp_path / "tree") == contents(tmp_path / "whole")


def test_workers_end_when_the_command_is_killed(config, source):
    for number in range(4):
        write_jsonl(source / "web" / f"more{number}.jsonl", [text(i, 300) for i in range(3000)])
    run = subprocess.Popen(
        [sys.executable, str(PREP / "prepare.py"), str(config), "processes=2", "unit_bytes=1KiB"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while workers_left(run.pid) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert workers_left(run.pid) >= 3, "the workers have started"
    run.send_signal(signal.SIGKILL)
    run.wait()
    until = time.monotonic() + 20
    while workers_left(run.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert workers_left(run.pid) == 0
