"""Which layers stay at each depth."""

import itertools

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.ledger import Ledger
from llmshearing.models.metrics import shifted
from llmshearing.search.depth import best_layers
from llmshearing.search.scoring import Batch, Parent


def parent_of(layers, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    tokens = torch.randint(41, (2, 10))
    batches = [Batch(n, tokens[n : n + 1], shifted(tokens[n : n + 1])) for n in range(2)]
    return Parent(LlamaForCausalLM(config).eval(), batches)


def loss_without(parent, removed):
    return parent.mean([parent.losses_without(n, [removed])[0] for n in range(2)])


def test_the_best_contiguous_block_or_set_of_harmless_layers_is_removed(tmp_path):
    seen = set()
    for seed in range(6):
        parent = parent_of(5, seed)
        found = best_layers(parent, Ledger(tmp_path / str(seed)), [3, 5])
        alone = {layer: loss_without(parent, (layer,)) for layer in range(5)}
        harmless = tuple(sorted(sorted(alone, key=alone.__getitem__)[:2]))
        sets = {*itertools.pairwise(range(5)), harmless}
        best = min(sets, key=lambda one: loss_without(parent, one))
        assert found[3].removed == best
        assert found[3].kept == tuple(n for n in range(5) if n not in best)
        assert found[3].loss == loss_without(parent, best)
        assert found[5].removed == ()
        seen.add(best[1] - best[0] == 1)
    assert seen == {True, False}  # both kinds win with some seed


def test_a_model_that_keeps_its_depth_needs_no_removal(tmp_path):
    parent = parent_of(3)
    assert best_layers(parent, Ledger(tmp_path), [3])[3].kept == (0, 1, 2)
    assert not list(tmp_path.iterdir())
