"""Scores of units: magnitude, controls, and files of scores."""

from dataclasses import replace

import pytest
import torch
from models_zoo import build, variants

from llmshearing.architecture.axes import Axis
from llmshearing.errors import UserError
from llmshearing.pruning import scores
from llmshearing.pruning.selection import select

GROUPED = next(v for v in variants() if v.name == "llama-gqa-untied")


def test_magnitude_adds_up_every_weight_once_per_axis():
    model, table = build(GROUPED)
    found = scores.magnitude(table, model.get_parameter)
    owned = {
        axis: sum(
            model.get_parameter(name).square().sum().item()
            for row in table.rows
            for _, name in row.instances(table.source.layers)
            if axis in [a for dim in row.dims for a in dim.axes]
        )
        for axis in (Axis.HIDDEN, Axis.HEAD, Axis.KV_GROUP, Axis.INTERMEDIATE)
    }
    owned[Axis.LAYER] = sum(p.square().sum().item() for p in model.model.layers.parameters())
    for axis, total in owned.items():
        assert found[axis].sum().item() == pytest.approx(total, rel=1e-5)
    model.model.layers[1].mlp.up_proj.weight.data[7] *= 10
    more = scores.magnitude(table, model.get_parameter)
    changed = (more[Axis.INTERMEDIATE] > found[Axis.INTERMEDIATE]).nonzero().tolist()
    assert changed == [[1, 7]]


def test_evenly_spaced_units_stay():
    _, table = build(GROUPED)
    target = replace(table.source, hidden=8, intermediate=5, layers=2)
    sizes = table.sizes(target)
    kept = select(scores.evenly_spaced(table, sizes), sizes)
    assert kept[Axis.HIDDEN].tolist() == list(range(1, 24, 3))
    assert kept[Axis.INTERMEDIATE].tolist() == [[2, 6, 10, 14, 18]] * 3
    assert kept[Axis.LAYER].tolist() == [0, 2]


def test_start_logits_are_linear_in_the_logarithm_of_the_ratio_to_the_median_of_each_row():
    root = scores.SCORE_RANGE**0.5
    score = torch.tensor([[1.0, root, 1 / root], [2.0, 2.0, 2.0 * root]])
    found = scores.start_logits(score, start=3.0, spread=0.5)
    assert found.flatten().tolist() == pytest.approx([3.0, 3.25, 2.75, 3.0, 3.0, 3.25])


def test_start_logits_are_bounded_and_outliers_far_apart_from_their_neighbours():
    score = torch.tensor([0.0, 0.9, 1.0, 1.1, 239.0])
    found = scores.start_logits(score, start=3.0, spread=2.0).tolist()
    assert found[0] == 1.0
    assert found[4] == 5.0
    assert max(found[1:4]) - min(found[1:4]) < 0.2
    assert scores.start_logits(torch.zeros(1, 1), start=3.0, spread=0.5).tolist() == [[3.0]]


def test_a_file_of_scores_fits_one_model_only(tmp_path):
    _, table = build(GROUPED)
    made = scores.random(table, seed=1)
    path = tmp_path / "scores.safetensors"
    scores.save_scores(path, made, {"rows": "6"})
    for axis, score in scores.load_scores(path, table).items():
        assert torch.equal(score, made[axis])
    _, other = build(replace(GROUPED, config=GROUPED.config | {"intermediate_size": 30}))
    with pytest.raises(UserError, match=r"axis intermediate, expected \(3, 30\)"):
        scores.load_scores(path, other)


def test_files_that_hold_no_usable_scores_are_refused(tmp_path):
    _, table = build(GROUPED)
    path = tmp_path / "scores.safetensors"
    path.write_bytes(b"not scores")
    with pytest.raises(UserError, match="no importance scores"):
        scores.load_scores(path, table)
    made = scores.random(table, seed=1)
    scores.save_scores(path, made, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the content has changed since it was written"):
        scores.load_scores(path, table)
    made[Axis.HEAD][1, 0] = torch.nan
    scores.save_scores(path, made, {})
    with pytest.raises(UserError, match="scores on axis head that are not finite"):
        scores.load_scores(path, table)
