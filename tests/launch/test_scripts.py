"""The scripts of launch/ outside Slurm: style, usage, two machines simulated by two launchers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmshearing.checkpoints.layout import step_of
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import STOPPED_STATUS

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(
    path
    for folder in (LAUNCH, LAUNCH / "slurm", ROOT / "tests" / "slurm", ROOT / ".ci")
    for path in folder.iterdir()
    if path.name == "run" or path.suffix in (".sh", ".sbatch", ".example")
)
DEADLINE_SECONDS = 170


@pytest.fixture
def site(tmp_path):
    """Settings of a site, in a folder with a space in its name."""
    path = tmp_path / "this site" / "site.env"
    path.parent.mkdir()
    path.write_text(f"PYTHON='{sys.executable}' RANKS_PER_NODE=1\nexport OMP_NUM_THREADS=1\n")
    return os.environ | {"SITE_ENV": str(path)}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="found no shellcheck")
def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) >= 10
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["local.sh", "pipeline.sh"])
def test_a_wrong_call_prints_the_usage(script):
    done = subprocess.run([LAUNCH / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"launch/{script} " in done.stderr
    assert "#" not in done.stderr


def test_the_shell_scripts_know_the_exit_status_of_a_stopped_run():
    assert f"\nSTOPPED={STOPPED_STATUS}\n" in (LAUNCH / "common.sh").read_text()


def test_the_example_site_has_the_default_settings(site):
    shown = 'ROOT=$1; . "$ROOT/launch/common.sh"; echo "$PYTHON|$RANKS_PER_NODE|${#CONTAINER[@]}"'
    command = ["bash", "-euc", shown, "bash", ROOT]
    site["SITE_ENV"] = str(LAUNCH / "site.env.example")
    done = subprocess.run(command, env=site, capture_output=True, text=True)
    python, ranks, container = done.stdout.strip().split("|")
    assert (python, container) == (f"{ROOT}/.venv/bin/python", "0")
    assert int(ranks) >= 1


@pytest.mark.slow
def test_a_signal_before_the_ranks_start_is_forwarded_later(recipe_file, site, tmp_path):
    command = [str(LAUNCH / "local.sh"), str(recipe_file), "run.duration=4000ba"]
    machine = subprocess.Popen(command, env=site)
    try:
        time.sleep(0.3)  # the launcher itself is still importing
        machine.send_signal(signal.SIGTERM)
        end = machine.wait(DEADLINE_SECONDS)
    finally:
        machine.kill()
    assert end == STOPPED_STATUS
    assert step_of(open_checkpoint(tmp_path / "run").path) < 4000


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_a_signal_to_one_machine_stops_both(recipe_file, site, tmp_path):
    directory = tmp_path / "this site" / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = site | {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [
        str(LAUNCH / "local.sh"),
        str(recipe_file),
        f"run.directory={directory}",
        "run.duration=4000ba",
        "run.eval_interval=4000ba",
        "run.checkpoint_interval=4000ba",
    ]
    machines = [
        subprocess.Popen(command, env=shared | {"NODE_RANK": str(number)}) for number in (0, 1)
    ]
    try:
        begun, lines = time.monotonic(), directory / "metrics.jsonl"
        while not lines.exists() or len(lines.read_text().splitlines()) < 3:
            assert all(machine.poll() is None for machine in machines)
            assert time.monotonic() - begun < DEADLINE_SECONDS
            time.sleep(0.1)
        machines[1].send_signal(signal.SIGTERM)
        ends = [machine.wait(DEADLINE_SECONDS) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert ends == [STOPPED_STATUS, STOPPED_STATUS]
    assert 3 <= step_of(open_checkpoint(directory).path) < 4000
