"""A run that is killed and resumed equals the run that was never killed, bit for bit."""

import json
import random
import shutil
import time

import pytest
import torch
import yaml
from ranks import Ranks
from recording import losses, seen
from runs import metrics, series

from llmshearing.caching import CacheSettings, make_cache
from llmshearing.checkpoints.layout import FOLDER, PARTIAL, whole_checkpoints
from llmshearing.checkpoints.tensors import open_checkpoint

pytestmark = pytest.mark.world_size(2)
WAYS = ("writing", "one", "all")  # all while a checkpoint is written, one rank, all ranks


@pytest.fixture
def recipe(recipe_file, tiny_model, tmp_path):
    """Dynamic batch loading with two workers; `target` decides the stage.

    It learns half from a teacher if `source` is `teacher` or `cache`.
    """
    references = tmp_path / "references.yaml"
    references.write_text(yaml.safe_dump({"losses": {"prose": 4.0, "code": 4.9, "letters": 3.0}}))
    given = json.loads(recipe_file.read_text())
    given["run"] |= {"eval_interval": "5ba", "checkpoint_interval": "2ba", "log_interval": "1ba"}
    given["data"] |= {"workers": 2, "eval_rows": 4}
    given["mixture"] = {
        "policy": "paper",
        "references": str(references),
        "update_interval": "5ba",
        "ceiling": 0.6,
    }

    def write(stage, source=None):
        given["data"]["split"] = stage
        if stage == "continue":
            del given["target"]
        if source is not None:
            given["distillation"] = {"teacher": str(tiny_model), "weight": 0.5}
        recipe_file.write_text(json.dumps(given))
        if source == "cache":
            make_cache(recipe_file, (), tmp_path / "cache", CacheSettings(places=16))
            given["distillation"] = {"cache": str(tmp_path / "cache"), "weight": 0.5}
            recipe_file.write_text(json.dumps(given))
        return recipe_file

    return write


@pytest.fixture
def start(tmp_path):
    started = []

    def run(count, name, *arguments):
        started.append(Ranks(count, tmp_path / name, *arguments))
        return started[-1]

    yield run
    for ranks in started:
        for process in ranks.processes:
            process.kill()
            process.join()


def being_written(ranks):
    """Whether a checkpoint is being written."""
    return any(ranks.directory.glob(f"{FOLDER}/.ba*{PARTIAL}"))


def kill_while_writing(ranks):
    """Stop all ranks when a checkpoint has its temporary name; kill them if it is incomplete."""
    while True:
        ranks.wait_for(lambda: being_written(ranks), pause=0)
        with ranks.stopped() as family:
            if being_written(ranks):
                for member in family:
                    member.kill()
                break
    ranks.join()
    assert being_written(ranks)


def survive(start, recipe, draw, steps, kills, *overrides):
    """Compare an uninterrupted run with one killed at `kills` random steps."""
    settings = (f"run.duration={steps}ba", *overrides)
    whole = start(2, "whole", recipe, *settings)
    whole.finish()
    assert sorted(seen(whole.directory)) == list(range(steps))
    moments = sorted(draw.sample(range(1, steps - 3), kills))
    for number, step in enumerate(moments):
        ranks = start(2, "killed", recipe, *settings)
        ranks.wait_for(lambda: ranks.step() >= step)  # noqa: B023
        way = WAYS[number % len(WAYS)]
        if way == "writing":
            kill_while_writing(ranks)
            continue
        time.sleep(draw.random() * 0.3)  # anywhere within the step or its checkpoint
        if way == "all":
            ranks.kill()
        else:
            ranks.kill_one(draw.randrange(2))
    ranks = start(2, "killed", recipe, *settings)
    ranks.finish()
    same(whole.directory, ranks.directory)
    return whole, moments


def same(whole, killed):
    """Samples, losses, metrics, masks over time, and all that the last checkpoint holds."""
    assert seen(killed) == seen(whole)
    assert losses(killed) == losses(whole)
    left, right = metrics(whole), metrics(killed)
    for name in sorted({name for line in left for name in line["metrics"]}):
        if not name.startswith("throughput"):
            assert series(left, name) == series(right, name), name
    for path in whole.glob("masks/*"):
        assert (killed / "masks" / path.name).read_bytes() == path.read_bytes()
    left, right = open_checkpoint(whole), open_checkpoint(killed)
    assert left.names() == right.names()
    assert all(torch.equal(left.read(name), right.read(name)) for name in left.names())
    assert left.manifest.losses == right.manifest.losses
    assert left.manifest.mixture == right.manifest.mixture
    assert [p.name for p in whole_checkpoints(killed)] == [p.name for p in whole_checkpoints(whole)]
    assert not list(killed.glob(f"{FOLDER}/.*"))


@pytest.mark.parametrize(
    ("stage", "source"),
    [
        ("prune", None),
        *(
            pytest.param(stage, source, marks=pytest.mark.slow)
            for stage in ("prune", "continue")
            for source in ("teacher", "cache")
        ),
    ],
)
def test_a_run_killed_twice_equals_the_uninterrupted_run(start, recipe, stage, source):
    # evaluate before each checkpoint: starting the evaluation loaders draws from the generators
    overrides = ("run.checkpoint=sharded", "parallelism=fsdp2", "data.workers=0")
    overrides += ("run.eval_interval=2ba",)
    survive(start, recipe(stage, source), random.Random(5), 8, 2, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prune", "continue"])
@pytest.mark.parametrize(("kind", "mode"), [("full", "ddp"), ("sharded", "fsdp2")])
def test_a_run_killed_at_twenty_moments_equals_the_uninterrupted_run(
    start, recipe, tmp_path, stage, kind, mode
):
    recipe, draw = recipe(stage), random.Random(20231010)
    overrides = (f"run.checkpoint={kind}", f"parallelism={mode}")
    whole, moments = survive(start, recipe, draw, 60, 20, *overrides, "run.keep_checkpoints=-1")

    # one rank resumes from what two ranks wrote: the same samples
    step = moments[10] // 2 * 2
    alone = tmp_path / "alone" / FOLDER
    alone.mkdir(parents=True)
    for path in (whole.directory / FOLDER).glob(f"ba{step}*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, alone / path.name)
    start(1, "alone", recipe, "run.duration=60ba", *overrides).finish()
    expected, found = seen(whole.directory), seen(tmp_path / "alone")
    assert min(found) == step
    assert found == {number: rows for number, rows in expected.items() if number >= step}
