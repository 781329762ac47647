"""The benchmarks that belong to plans run, small, and refuse what they cannot measure."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(name, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_throughput_runs_at_a_tiny_size():
    size = "--shape tiny --device cpu --rows 2 --length 32 --steps 2 --warmup 1".split()
    done = run("gpu_throughput.py", *size)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [row.split("|")[2].strip() for row in rows] == ["stock", "continue", "prune"]
    assert all(float(row.split("|")[3].replace(",", "")) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_throughput_refuses_where_there_is_no_gpu():
    done = run("gpu_throughput.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no GPU")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "recomputed", "masked"])
def test_the_planned_peak_is_the_measured_one(name):
    """Within 15 %, on a real run of 58M parameters; about a minute each."""
    done = run("plan_memory.py", "--only", name)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith(name))
    assert float(line[40:48]) == pytest.approx(1, abs=0.15)
