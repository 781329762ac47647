"""Importance of units, measured in forward passes."""

import pytest
import torch
from models_zoo import Variant, build, variants

from llmshearing.architecture.axes import Axis
from llmshearing.models.activation_importance import activation_importance
from llmshearing.pruning.scores import score_shapes

GROUPED = next(v for v in variants() if v.name == "llama-gqa-untied")


def tokens(rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 37, (rows, 16), generator=torch.Generator().manual_seed(3))


def silence(model, table, axis: Axis, layer: int, unit: int) -> None:
    """Make a unit of one layer add nothing to the residual stream."""
    for row in table.rows:
        if row.per_layer and len(row.dims) == 2 and axis in row.dims[1].axes:
            weight = model.get_parameter(row.name.format(layer=layer)).data
            dim = row.dims[1]
            sizes = [table.sizes(table.source)[a] for a in dim.axes] + [dim.multiple]
            units = weight.view(weight.shape[0], *sizes)
            units.movedim(1 + dim.axes.index(axis), 0)[unit].zero_()


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_only_units_that_add_nothing_score_zero(variant: Variant):
    model, table = build(variant)
    chosen = {axis: 1 for axis in table.sizes(table.source) if axis.per_layer}
    for axis, unit in chosen.items():
        silence(model, table, axis, 1, unit)
    scores = activation_importance(model, table, [tokens()])
    for axis, unit in chosen.items():
        assert scores[axis][1, unit] == 0
        assert (scores[axis] == 0).sum() == 1
        assert scores[axis].shape == score_shapes(table)[axis]


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


def test_scores_do_not_depend_on_the_batch_size():
    model, table = build(GROUPED)
    whole = activation_importance(model, table, [tokens()])
    cut = activation_importance(model, table, tokens().split(2))
    for axis, score in whole.items():
        torch.testing.assert_close(cut[axis], score)


def test_a_layer_without_effect_scores_zero_and_hooks_are_removed():
    model, table = build(GROUPED)
    for module in (model.model.layers[1].mlp.down_proj, model.model.layers[1].self_attn.o_proj):
        module.weight.data.zero_()
    scores = activation_importance(model, table, [tokens()])
    assert scores[Axis.LAYER][1].abs() < 1e-6
    assert (scores[Axis.LAYER][[0, 2]] > 1e-3).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_hidden_dimension_with_zero_norm_weights_scores_zero():
    model, table = build(GROUPED)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data[5] = 0
    scores = activation_importance(model, table, [tokens()])
    assert (scores[Axis.HIDDEN] == 0).nonzero().flatten().tolist() == [5]


def test_all_norms_have_equal_weight_in_the_importance_of_hidden_dimensions():
    model, table = build(GROUPED)
    squares = []
    norms = [m for name, m in model.named_modules() if name.endswith("norm")]
    handles = [
        norm.register_forward_hook(lambda _, __, out: squares.append(out.square().mean((0, 1))))
        for norm in norms
    ]
    with torch.no_grad():
        model(tokens(), use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(squares) == 2 * table.source.layers + 1
    expected = sum(square / square.mean() for square in squares) / tokens().numel()
    found = activation_importance(model, table, [tokens()])[Axis.HIDDEN]
    torch.testing.assert_close(found, expected)
