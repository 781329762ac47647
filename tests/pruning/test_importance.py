from dataclasses import replace

import pytest
import torch
from models_zoo import Variant, build, variants

from llmshearing.architecture.axes import Axis
from llmshearing.errors import UserError
from llmshearing.models.importance import activation_importance
from llmshearing.pruning import importance
from llmshearing.pruning.selection import select

GROUPED = next(v for v in variants() if v.name == "llama-gqa-untied")


def tokens(rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 37, (rows, 16), generator=torch.Generator().manual_seed(3))


def silence(model, table, axis: Axis, layer: int, unit: int) -> None:
    """Make a unit of one layer add nothing to the stream."""
    for row in table.rows:
        if row.layer_gated and len(row.dims) == 2 and axis in row.dims[1].axes:
            weight = model.get_parameter(row.name.format(layer=layer)).data
            dim = row.dims[1]
            sizes = [table.sizes(table.source)[a] for a in dim.axes] + [dim.multiple]
            units = weight.view(weight.shape[0], *sizes)
            units.movedim(1 + dim.axes.index(axis), 0)[unit].zero_()


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_a_unit_that_adds_nothing_scores_zero_and_only_it(variant: Variant):
    model, table = build(variant)
    chosen = {axis: 1 for axis in table.sizes(table.source) if axis.per_layer}
    for axis, unit in chosen.items():
        silence(model, table, axis, 1, unit)
    scores = activation_importance(model, table, [tokens()])
    for axis, unit in chosen.items():
        assert scores[axis][1, unit] == 0
        assert (scores[axis] == 0).sum() == 1
        assert scores[axis].shape == importance.score_shapes(table)[axis]


def test_scores_are_the_mean_square_of_what_a_unit_adds():
    model, table = build(GROUPED)
    batch = tokens()
    seen = {}
    layer = model.model.layers[2]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.update(mlp=x[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen.update(heads=x[0]))
    scores = activation_importance(model, table, [batch])
    with torch.no_grad():
        weight = layer.mlp.down_proj.weight
        added = seen["mlp"].square().mean((0, 1)) * weight.square().sum(0)
        torch.testing.assert_close(scores[Axis.INTERMEDIATE][2], added)
        weight = layer.self_attn.o_proj.weight  # 4 groups of 2 heads of 4 entries
        outputs = [
            seen["heads"][..., 4 * head : 4 * head + 4] @ weight[:, 4 * head : 4 * head + 4].T
            for head in range(8)
        ]
        heads = torch.stack([out.square().sum(-1).mean() for out in outputs]).reshape(4, 2)
    torch.testing.assert_close(scores[Axis.KV_GROUP][2], heads.sum(1))
    torch.testing.assert_close(scores[Axis.HEAD][2], heads.sum(0))


def test_any_cut_into_batches_gives_the_same_scores():
    model, table = build(GROUPED)
    whole = activation_importance(model, table, [tokens()])
    cut = activation_importance(model, table, tokens().split(2))
    for axis, score in whole.items():
        torch.testing.assert_close(cut[axis], score)


def test_a_layer_that_does_nothing_has_no_importance_and_hooks_leave_the_model():
    model, table = build(GROUPED)
    for module in (model.model.layers[1].mlp.down_proj, model.model.layers[1].self_attn.o_proj):
        module.weight.data.zero_()
    scores = activation_importance(model, table, [tokens()])
    assert scores[Axis.LAYER][1].abs() < 1e-6
    assert (scores[Axis.LAYER][[0, 2]] > 1e-3).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_hidden_dimension_that_no_norm_passes_on_scores_zero():
    model, table = build(GROUPED)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data[5] = 0
    scores = activation_importance(model, table, [tokens()])
    assert (scores[Axis.HIDDEN] == 0).nonzero().flatten().tolist() == [5]


def test_magnitude_adds_up_every_weight_once_per_axis():
    model, table = build(GROUPED)
    scores = importance.magnitude(table, model.get_parameter)
    owned = {
        axis: sum(
            model.get_parameter(name).square().sum().item()
            for row in table.rows
            for _, name in row.instances(table.source.layers)
            if axis in [a for dim in row.dims for a in dim.axes]
        )
        for axis in (Axis.HIDDEN, Axis.HEAD, Axis.KV_GROUP, Axis.INTERMEDIATE)
    }
    for axis, total in owned.items():
        assert scores[axis].sum().item() == pytest.approx(total, rel=1e-5)
    model.model.layers[1].mlp.up_proj.weight.data[7] *= 10
    more = importance.magnitude(table, model.get_parameter)
    changed = (more[Axis.INTERMEDIATE] > scores[Axis.INTERMEDIATE]).nonzero().tolist()
    assert changed == [[1, 7]]


def test_evenly_spaced_units_stay():
    _, table = build(GROUPED)
    target = replace(table.source, hidden=8, intermediate=5, layers=2)
    sizes = table.sizes(target)
    kept = select(importance.evenly_spaced(table, sizes), sizes)
    assert kept[Axis.HIDDEN].tolist() == list(range(1, 24, 3))
    assert kept[Axis.INTERMEDIATE].tolist() == [[2, 6, 10, 14, 18]] * 3
    assert kept[Axis.LAYER].tolist() == [0, 2]


def test_scores_go_to_a_file_and_back_and_fit_one_model_only(tmp_path):
    _, table = build(GROUPED)
    scores = importance.random(table, seed=1)
    path = tmp_path / "scores.safetensors"
    importance.save_scores(path, scores, {"rows": "6"})
    for axis, score in importance.load_scores(path, table).items():
        assert torch.equal(score, scores[axis])
    _, other = build(replace(GROUPED, config=GROUPED.config | {"intermediate_size": 30}))
    with pytest.raises(UserError, match=r"axis intermediate, expected \(3, 30\)"):
        importance.load_scores(path, other)
    path.write_bytes(b"not scores")
    with pytest.raises(UserError, match="no importance scores"):
        importance.load_scores(path, table)
