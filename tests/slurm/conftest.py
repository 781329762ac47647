"""A Slurm of two nodes on this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = Path(__file__).with_name("setup.sh")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
DEADLINE_SECONDS = 300


@dataclass
class Cluster:
    """Commands on the cluster, from a folder with a space in its name."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, **more: str) -> str:
        """Standard output of a command."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path) -> str:
        """Submit a job, on both nodes by default; its number."""
        return self.run("sbatch", "--parsable", "--nodes=2", *arguments).strip()

    def describe(self, job: str) -> dict[str, str]:
        """Slurm's fields of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.describe(job)["JobState"]

    def wait(self, condition, what: str) -> None:
        """Wait until a condition holds; a failed job or the deadline fails the test."""
        begun = looked = time.monotonic()
        while not condition():
            time.sleep(0.2)
            if time.monotonic() - looked < 2:
                continue
            looked = time.monotonic()
            states = self.run("squeue", "--all", "--states=all", "--format=%i %j %T %r")
            late = time.monotonic() - begun > DEADLINE_SECONDS
            assert not late and "FAILED" not in states, f"{what}\n{states}\n{self.logs()}"  # noqa: PT018

    def finish(self, *jobs: str) -> None:
        self.wait(lambda: all(self.state(job) == "COMPLETED" for job in jobs), f"the end of {jobs}")

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.rglob("*.log")
        )


@pytest.fixture(scope="session")
def slurm():
    """The environment of commands on a running cluster."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"found no {', '.join(missing)}: tests/slurm/setup.sh install")
    folder = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # socket paths must be short
    environment = os.environ | {"PATH": path}
    try:
        subprocess.run([SETUP, "start", folder], check=True, env=environment, timeout=60)
        yield environment | {"SLURM_CONF": f"{folder}/slurm.conf"}
    finally:
        subprocess.run([SETUP, "stop", folder], env=environment, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(slurm, tmp_path):
    """The cluster as the scripts of launch/ see it."""
    folder = tmp_path / "a user's folder"
    folder.mkdir()
    site = folder / "site.env"
    site.write_text(
        f"PYTHON='{sys.executable}' RANKS_PER_NODE=1\n"
        "CPU_JOB=(--cpus-per-task=1)\n"
        "export OMP_NUM_THREADS=1\n"
    )
    return Cluster(folder, slurm | {"SITE_ENV": str(site), "LLMSHEARING_ROOT": str(ROOT)})
