"""Bytes of parameters, masks, gradients and optimizer state are those of a real run."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from state_bytes_of_runs import measure

from llmshearing.planning.plan_inputs import read_inputs
from llmshearing.planning.state import local_elements, state_bytes

SCRIPT = Path(__file__).parents[1] / "state_bytes_of_runs.py"
STEPS = ["run.duration=2ba", "run.eval_interval=2ba", "run.checkpoint_interval=9ba"]


@pytest.mark.parametrize("target", ["shape", "budget", "none"])
def test_state_of_one_process_is_exact(target, recipe_file, tmp_path):
    recipe = json.loads(recipe_file.read_text())
    if target == "budget":
        recipe["target"] = {"parameters": "15K"}
    elif target == "none":
        del recipe["target"]
    recipe_file.write_text(json.dumps(recipe))
    measure(tmp_path / "found", recipe_file, STEPS)
    compare(tmp_path / "found", recipe_file, [], ranks=1, prunes=target != "none")


@pytest.mark.slow
@pytest.mark.world_size(2)
@pytest.mark.parametrize("constraint", ["released", "paper"])
def test_state_of_two_shards_is_exact(constraint, recipe_file, tmp_path):
    """Three layers on two ranks: shards are uneven, and one of them has no multiplier."""
    overrides = ["parallelism=fsdp2", f"pruning.constraint={constraint}"]
    composer = Path(sys.executable).with_name("composer")
    arguments = [str(tmp_path / "found"), str(recipe_file), *STEPS, *overrides]
    done = subprocess.run(
        [str(composer), "-n", "2", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    compare(tmp_path / "found", recipe_file, overrides, ranks=2, prunes=True)


def compare(folder, recipe_file, overrides, ranks, prunes):
    inputs = read_inputs(recipe_file, overrides)
    constraint = inputs.recipe.pruning.constraint
    for rank in range(ranks):
        found = json.loads((folder / f"rank{rank}.json").read_text())
        expected = state_bytes(inputs.table, inputs.target, constraint, ranks, rank)
        assert found == asdict(expected)
        assert (found["masks"] > 0) == prunes


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 1000])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_add_up_to_the_whole(rows, shards):
    parts = [local_elements((rows, 5), shards, rank) for rank in range(shards)]
    assert sum(parts) == 5 * rows
    assert parts == sorted(parts, reverse=True)


def test_the_optimizer_keeps_two_moments_and_a_counter_of_each_tensor(recipe_file):
    inputs = read_inputs(recipe_file)
    state = state_bytes(inputs.table, None, "released")
    shapes = inputs.table.tensor_shapes(inputs.table.source).values()
    assert state.parameters == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert state.optimizer == 2 * state.parameters + 4 * len(shapes)
    wider = replace(inputs.table.source, hidden=64)
    assert inputs.table.parameter_count(wider) > inputs.table.parameter_count(inputs.table.source)
