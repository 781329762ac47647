"""A search from model and data to scores."""

import dataclasses

import pytest
import torch

from llmshearing.config import parse_target
from llmshearing.errors import UserError
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.export.oneshot import from_file, prune_oneshot
from llmshearing.pruning.scores import save_scores
from llmshearing.search.search import search


def sizes(shape, table):
    given = {"hidden": shape.hidden, "layers": shape.layers, "heads": shape.heads}
    return parse_target(
        [f"{n}={v}" for n, v in {**given, "intermediate": shape.intermediate}.items()]
    )


def test_every_candidate_is_within_the_budget_and_none_contains_another(found):
    result, _ = found
    table = result.source.table
    assert len(result.candidates) == 6 < result.largest
    counts = [table.parameter_count(one.shape) for one in result.candidates.values()]
    assert all(count <= 20_000 for count in counts)
    assert len({one.shape.layers for one in result.candidates.values()}) > 1
    assert result.within > result.largest


def test_a_candidate_has_the_loss_of_the_directory_that_prune_oneshot_writes(
    found, tiny_model, tiny_tree, tmp_path
):
    result, _ = found
    best = result.candidates[result.ranking[0]]
    save_scores(tmp_path / "scores", best.scores, {})
    target = sizes(best.shape, result.source.table)
    made = prune_oneshot(
        tiny_model, tmp_path / "cut", target, from_file(tmp_path / "scores"), method="activation"
    )
    assert made.shape == best.shape
    expected = evaluate(tmp_path / "cut", tiny_tree / "eval", rows=2)
    assert result.scores[best.name].loss == pytest.approx(expected.mean, abs=1e-5)
    kept = torch.tensor(made.manifest.kept["layer"]) if "layer" in made.manifest.kept else None
    assert kept is None or tuple(kept.tolist()) == result.depths[best.shape.layers].kept


def test_the_same_search_gives_the_same_result_and_measures_nothing_again(
    found, tiny_model, tiny_tree, target, settings
):
    result, out = found
    before = (out / "scores-0.jsonl").read_bytes()
    again = search(tiny_model, tiny_tree, target, out, settings)
    assert again.scores == result.scores
    assert (out / "scores-0.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "parameters"), [({"rows": 3}, "20K"), ({}, "19K")], ids=["settings", "target"]
)
def test_another_search_is_refused_in_the_same_directory(
    found, tiny_model, tiny_tree, settings, target, change, parameters
):
    _, out = found
    changed = dataclasses.replace(settings, **change)
    target = target.model_copy(update={"parameters": parameters})
    with pytest.raises(UserError, match="has a search with another"):
        search(tiny_model, tiny_tree, target, out, changed)


def test_an_importance_file_saves_the_pass_and_gives_the_same_result(
    found, tiny_model, tiny_tree, target, settings, tmp_path
):
    result, out = found
    given = dataclasses.replace(settings, importance=str(out / "importance.safetensors"))
    again = search(tiny_model, tiny_tree, target, tmp_path / "other", given)
    assert again.scores == result.scores
