"""What a search writes."""

import json

import pytest
from safetensors import safe_open

from llmshearing.cli import main
from llmshearing.preflight import resolve
from llmshearing.search.output import _ranges, pareto_front, ranking


@pytest.fixture(scope="module")
def written(found, tiny_model, tiny_tree, settings, tmp_path_factory):
    """What the command writes when it resumes that search."""
    _, out = found
    given = ["search", tiny_model, "--data", tiny_tree, "--out", out]
    given += ["--target", "parameters=20K", "multiple_of.hidden=8", "multiple_of.intermediate=8"]
    numbers = (settings.candidates, settings.values_per_axis, settings.rows)
    for name, value in zip(("candidates", "values", "rows"), numbers, strict=True):
        given += [f"--{name}", value]
    given += ["--importance-rows", settings.importance_rows, "--batch-size", settings.batch_size]
    assert not main(list(map(str, given)))
    return out


def test_the_recipe_of_the_best_shape_is_valid_and_prunes_to_it(found, written):
    result, _ = found
    recipe, inputs = resolve(written / "best.yaml")
    best = result.candidates[result.ranking[0]]
    assert inputs.target == best.shape
    assert recipe.pruning.method == "oneshot"
    assert (recipe.optimizer.learning_rate, recipe.data.global_batch) == (3e-4, 16)
    assert recipe.pruning.importance == str(written / "best.safetensors")
    with safe_open(recipe.pruning.importance, "pt") as file:
        layers = file.get_tensor("layer").nonzero().flatten().tolist()
    assert tuple(layers) == result.depths[best.shape.layers].kept


def test_the_table_lists_every_candidate_best_first_and_says_what_was_left_out(found, written):
    result, _ = found
    text = (written / "table.txt").read_text()
    lines = text.splitlines()
    losses = [result.scores[name].loss for name in result.ranking]
    assert [float(line.split()[-2]) for line in lines[1:7]] == pytest.approx(losses, abs=1e-4)
    assert losses == sorted(losses)
    assert f"{result.within:,} within the budgets, {result.largest:,} of them not within" in text
    assert "6 scored, evenly spaced" in text


def test_those_that_were_trained_longest_come_first(found):
    result, _ = found
    first, second, third = result.ranking[:3]
    rounds = [{third: 1.0, second: 1.2}, {second: 0.9}]
    assert ranking(result, rounds)[:3] == [second, third, first]


def test_layers_in_a_row_are_written_as_one_range():
    assert _ranges([3, 5, 6, 7, 9]) == "3, 5-7, 9"


def test_results_have_every_score(found, written):
    result, _ = found
    stored = json.loads((written / "results.json").read_text())
    assert [one["name"] for one in stored["candidates"]] == result.ranking
    for one in stored["candidates"]:
        assert one["loss"] == result.scores[one["name"]].loss
        assert one["divergence"] == result.scores[one["name"]].divergence
    assert stored["shapes"]["within the budgets"] == result.within
    assert (written / "shapes.png").read_bytes().startswith(b"\x89PNG")


def test_the_pareto_front_has_the_shapes_that_no_smaller_one_beats():
    points = [(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (4, 1.5), (3, 1.2)]
    assert pareto_front(points) == [(1, 3.0), (2, 2.0), (3, 1.0)]
