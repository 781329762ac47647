"""The scripts of launch/slurm on a real Slurm: preemption, time limits, arrays, dependent jobs."""

import contextlib
import json
import signal
import sys
from pathlib import Path

import psutil
import pytest
from runs import metrics

from llmshearing.checkpoints.layout import step_of
from llmshearing.checkpoints.tensors import open_checkpoint

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "launch" / "slurm"
STEPS = 60

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(recipe_file):
    """A run whose only checkpoint before the end comes from a signal."""
    given = json.loads(recipe_file.read_text())
    given["run"] |= {
        "duration": f"{STEPS}ba",
        "eval_interval": "20ba",
        "checkpoint_interval": f"{STEPS}ba",
    }
    given["data"] |= {"workers": 1, "eval_rows": 4}
    recipe_file.write_text(json.dumps(given))
    return recipe_file


def ranks_of(directory):
    """The processes of a run's ranks, their loader workers included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[:1] == [sys.executable] and f"run.directory={directory}" in words:
            found.append(process)
    return found


def pending(processes, number):
    """Whether a signal is pending for each of these suspended processes that still exists."""
    masks = []
    for process in processes:
        if not process.is_running():
            continue
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        masks.append(int(status["ShdPnd"], 16) | int(status["SigPnd"], 16))
    return all(mask >> (number - 1) & 1 for mask in masks)


def requeued(cluster, job):
    """How often a job was requeued, once its ranks have ended."""
    job = cluster.describe(job)
    return job["JobState"] != "COMPLETING" and int(job["Restarts"])


def steps_of(directory):
    path = directory / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def suspend_after(cluster, directory, step):
    """Suspend a run after a step, so that the test does not depend on its speed."""
    cluster.wait(lambda: steps_of(directory) >= step, f"step {step}")
    processes = ranks_of(directory)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    assert steps_of(directory) < STEPS
    return processes


def measured(directory):
    """All metrics of every step except times."""
    return {
        line["batch"]: {k: v for k, v in line["metrics"].items() if not k.startswith("throughput")}
        for line in metrics(directory)
    }


def test_a_pruning_job_survives_its_time_limit_and_a_preemption(cluster, recipe):
    whole, stopped = cluster.folder / "whole", cluster.folder / "stopped"
    cluster.finish(cluster.submit(JOBS / "prune.sbatch", recipe, f"run.directory={whole}"))

    # Slurm checks twice a minute, so the signal comes after 5 to 35 s; on a slow machine the ranks
    # are still starting then
    limits = ("--time=3", "--signal=USR1@175")
    job = cluster.submit(*limits, JOBS / "prune.sbatch", recipe, f"run.directory={stopped}")
    ranks = suspend_after(cluster, stopped, 1)
    told = stopped / "log.txt"
    cluster.wait(lambda: "SIGUSR1" in told.read_text() or pending(ranks, signal.SIGUSR1), "SIGUSR1")
    for process in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    cluster.wait(lambda: requeued(cluster, job) == 1, "the first requeue")
    first = step_of(open_checkpoint(stopped).path)
    assert 1 <= first < STEPS
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")

    suspend_after(cluster, stopped, first + 3)
    urgent = cluster.submit("--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    # Slurm sends SIGCONT with SIGTERM
    cluster.wait(lambda: requeued(cluster, job) == 2, "the second requeue")
    assert first < step_of(open_checkpoint(stopped).path) < STEPS
    cluster.finish(urgent, job)

    assert sorted(measured(stopped)) == list(range(1, STEPS + 1))
    assert measured(stopped) == measured(whole)
    log = (stopped / "log.txt").read_text()
    assert log.index("SIGUSR1 at step") < log.index("SIGTERM at step")
    assert "0: " in (cluster.folder / f"prune-{job}.log").read_text()


def test_the_pipeline_runs_as_dependent_jobs(
    cluster, recipe, tiny_model, tiny_data_recipe, tiny_tree
):
    second = cluster.folder / "continue.yaml"
    given = json.loads(recipe.read_text())
    del given["target"]
    given["data"]["split"] = "continue"
    second.write_text(json.dumps(given))
    environment = {
        "DATA": str(tiny_data_recipe),
        "PRUNE": str(recipe),
        "CONTINUE": str(second),
        "PRUNE_ARGS": "run.duration=4ba run.eval_interval=4ba pruning.freeze=0.5dur",
        "CONTINUE_ARGS": "run.duration=4ba run.eval_interval=4ba",
        "PREPARE_TASKS": "3",
        "PRUNE_NODES": "2",
    }
    words = ("--slurm", "--start", "masks", tiny_model, tiny_data_recipe.parent, "out")
    command = (ROOT / "launch/pipeline.sh", *words)
    table = cluster.run(*command, **environment)
    out = cluster.folder / "out"
    jobs = (out / "jobs").read_text().split()
    assert [line.split()[0] for line in table.splitlines()] == [
        "tokenise", "pack", "evaluate-source", "prune", "export-pruned", "evaluate-pruned",
        "continue", "export-sheared", "evaluate-sheared", "report",
    ]  # fmt: skip
    assert cluster.describe(jobs[3])["Dependency"].startswith(f"afterok:{jobs[1]}")
    cluster.finish(*jobs[1:])

    def files(root):
        paths = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    # an array of three tasks and the packing job produce the bytes that one process produces
    assert files(out / "data") == files(tiny_tree)
    shapes = [
        json.loads((out / name / "llmshearing.json").read_text())["shape"]
        for name in ("pruned", "sheared")
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0]["hidden"] == 16
    for name in ("source", "pruned", "sheared"):
        assert json.loads((out / f"{name}.json").read_text())
    assert "<html" in (out / "report.html").read_text()

    # finished steps are kept
    table = cluster.run(*command, **environment)
    assert [line.split()[0] for line in table.splitlines()] == ["report"]
