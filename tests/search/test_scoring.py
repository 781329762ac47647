"""Losses, divergences and losses without layers, against plain computations."""

import copy

import pytest
import torch
from models_zoo import build, variants
from torch.nn.functional import cross_entropy, kl_div

from llmshearing.data.tree import DataTree
from llmshearing.evaluation.domain_loss import evaluate
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.models.blocks import blocks_path
from llmshearing.models.metrics import IGNORED, shifted
from llmshearing.search.scoring import Batch, Parent, held_out_batches

ROWS = 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parent(tiny_model, tiny_tree):
    model = load_model(read_source(tiny_model))
    tree = DataTree.open(tiny_tree)
    return Parent(model, held_out_batches(tree, "eval", ROWS, 1, CPU))


def test_the_loss_is_that_of_evaluate_on_the_same_rows(parent, tiny_model, tiny_tree):
    expected = evaluate(tiny_model, tiny_tree / "eval", rows=ROWS, batch_size=2)
    assert parent.score(parent.model).loss == pytest.approx(expected.mean, abs=1e-6)


def test_the_divergence_of_the_parent_from_itself_is_zero(parent):
    assert parent.score(parent.model).divergence == 0


def test_the_divergence_is_the_mean_over_domains_of_the_kl_per_target(parent):
    torch.manual_seed(1)
    other = copy.deepcopy(parent.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found, sums = parent.score(other), {}
    for batch in parent.batches:
        logs = [m(batch.tokens).logits.log_softmax(-1)[:, :-1] for m in (parent.model, other)]
        total, count = sums.get(batch.domain, (0.0, 0))
        each = kl_div(logs[1], logs[0], log_target=True, reduction="sum").item()
        sums[batch.domain] = total + each, count + batch.tokens[:, 1:].numel()
    expected = sum(total / count for total, count in sums.values()) / len(sums)
    assert found.divergence == pytest.approx(expected, rel=1e-5)
    assert found.divergence > 0.01


@pytest.mark.parametrize("removed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_a_loss_without_layers_is_that_of_a_model_that_lacks_them(variant, removed):
    model, _ = build(variant)
    torch.manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, 12))
    batch = Batch(0, tokens, shifted(tokens))
    parent = Parent(model, [batch])
    before = parent.score(model).loss
    (found,) = parent.losses_without(0, [removed])

    cut = copy.deepcopy(model)
    blocks = [b for i, b in enumerate(cut.get_submodule(blocks_path(cut))) if i not in removed]
    cut.set_submodule(blocks_path(cut), torch.nn.ModuleList(blocks))
    if types := getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [one for i, one in enumerate(types) if i not in removed]
    logits = cut(tokens, use_cache=False).logits
    expected = cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert parent.score(model).loss == before  # the model is whole again


def test_positions_without_a_target_do_not_count(parent):
    batch = parent.batches[0]
    targets = batch.targets.clone()
    targets[:, :10] = IGNORED
    changed = Parent(parent.model, [Batch(0, batch.tokens, targets)])
    logits = parent.model(batch.tokens).logits
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert changed.score(parent.model).loss == pytest.approx(expected.item(), rel=1e-5)
