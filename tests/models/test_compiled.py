"""Each block compiles as one graph and gives the same losses."""

from dataclasses import replace

import pytest
import torch
from models_zoo import COMMON, build, variants

from llmshearing.models.blocks import compile_blocks, decoder_blocks
from llmshearing.models.shearing import ShearingModel
from llmshearing.pruning.masks import Masks, PruningSettings
from llmshearing.pruning.schedule import MaskState

pytestmark = pytest.mark.filterwarnings("default")  # allow the compiler's own warnings


def steps(compiled, backend="aot_eager"):
    """Losses and gradient norms of three steps and an evaluation, with gates and without."""
    torch.compiler.reset()
    decoder, table = build(variants()[0])
    target = replace(table.source, hidden=14, layers=2, intermediate=9)
    masks = Masks(table, target, PruningSettings(), seed=1)
    model = ShearingModel(decoder, masks, domains=1).train()
    names = list(model.state_dict())
    if compiled:
        compile_blocks(decoder, backend)
    assert list(model.state_dict()) == names
    ids = torch.randint(0, COMMON["vocab_size"], (2, 11), generator=torch.Generator())
    batch = {"input_ids": ids, "labels": ids, "domain": torch.zeros(2, dtype=torch.long)}
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        model.masks.set_state(MaskState(step, step / 2))
        losses = model.loss(model(batch), batch)
        losses["total"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        found += [losses["ce"].item(), norm.item()]
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.eval()
        found.append(model.loss(model(batch), batch)["ce"].item())
    return found


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_compiled_gated_block_is_one_graph_with_the_same_loss():
    expected = steps(compiled=False)
    before = graphs()
    assert steps(compiled=True) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # One graph for training and one for evaluation, for all steps and blocks.
    assert 1 <= graphs() - before <= 2


@pytest.mark.slow
def test_inductor_gives_the_same_loss():
    expected = steps(compiled=False)
    assert steps(compiled=True, backend="inductor") == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_graph_break_is_an_error():
    decoder, _ = build(variants()[0])
    mlp = decoder_blocks(decoder)[0].mlp
    original = mlp.forward
    mlp.forward = lambda hidden: (torch._dynamo.graph_break(), original(hidden))[1]
    compile_blocks(decoder, "aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        decoder(torch.zeros(1, 4, dtype=torch.long))
