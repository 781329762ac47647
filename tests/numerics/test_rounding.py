"""Rounding to bfloat16 adds no more error to the export than to the source.

bfloat16 has 8 significant bits, so rounding to nearest changes a weight w by at most u |w| with
u = 2**-8. To first order a logit z then moves by the sum over all weights of (relative error) times
w dz/dw. Relative errors are independent and at most u, so the standard deviation of that sum is at
most u / sqrt(3) times the norm of w dz/dw, and four of them bound it (Higham and Mary, 2019).

Export writes w' = g w, and w' dz/dw' = w dz/dw: the bound of the exported model is the very number
that holds for the source model under its gates, whatever the gates are. A norm that is stored as
w - 1 is the exception: what is rounded is not w, so the export has a bound of its own.
"""

import pytest
import torch
from equivalence import Specimen, draw, export, subsets, target_shape
from models_zoo import build, variants
from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.huggingface.stock import stock_config, stock_model
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.pruning.surgery import cut_model

UNIT_ROUNDOFF = 2.0**-8
DEVIATIONS = 4.0
LOGITS = 6


@pytest.fixture(scope="module", params=variants(), ids=str)
def specimen(request):
    return Specimen(request.param)


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in weights.items()}


def sensitivity(model, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Some logits [n], and for each of them the norm of w dz/dw over all weights [n]."""
    logits = model(tokens).logits[:, -1].flatten()
    logits = logits[:: len(logits) // LOGITS]
    parameters = list(model.parameters())
    norms = []
    for logit in logits:
        gradients = torch.autograd.grad(logit, parameters, retain_graph=True)
        terms = [(w * g).square().sum() for w, g in zip(parameters, gradients, strict=True)]
        norms.append(torch.stack(terms).sum().sqrt())
    return logits.detach(), torch.stack(norms).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_weight_is_rounded_once_for_all_its_gates(specimen, dtype):
    *_, every = subsets(specimen.table)
    gates, kept = draw(specimen.table, every, specimen.generator, hard=False)
    gates = {axis: gate.float() for axis, gate in gates.items()}
    source = {name: tensor.to(dtype) for name, tensor in specimen.weights.items()}
    written = dict(cut_model(specimen.table, kept, gates, source.__getitem__))
    wide = {axis: gate.double() for axis, gate in gates.items()}
    exact = cut_model(specimen.table, kept, wide, lambda name: source[name].double())
    for name, tensor in exact:
        error = (written[name].bfloat16().double() - tensor).abs()
        # The products are taken in float32, whose own roundoff is the last factor.
        assert (error <= UNIT_ROUNDOFF * (1 + 2**-13) * tensor.abs()).all(), name


def test_logits_of_the_export_are_within_the_rounding_error_of_the_source(specimen):
    *_, every = subsets(specimen.table)
    gates, kept = draw(specimen.table, every, specimen.generator, hard=False)
    model, tokens = specimen.model, specimen.tokens
    try:
        set_gates(insert_gates(model, specimen.table), specimen.table, gates)
        exact, norm = sensitivity(model, tokens)
        model.load_state_dict(rounded(specimen.weights))
        source, _ = sensitivity(model, tokens)
    finally:
        model.load_state_dict(specimen.weights)
        specimen.restore()
    small = export(specimen, specimen.table, kept, gates)
    found, same_norm = sensitivity(small, tokens)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    if not any(row.offset for row in specimen.table.rows):
        torch.testing.assert_close(same_norm, norm, rtol=1e-8, atol=0)
    small.load_state_dict(rounded(small.state_dict()))
    found, _ = sensitivity(small, tokens)
    bound = DEVIATIONS * UNIT_ROUNDOFF / 3**0.5
    assert ((source - exact).abs() <= bound * norm).all()
    assert ((found - exact).abs() <= bound * same_norm).all()
    assert (found != exact).any()


def test_a_bfloat16_export_errs_no_more_than_the_bfloat16_source(specimen):
    """With rounded activations: root mean square of all logits of four draws, to 50 %."""
    *_, every = subsets(specimen.table)
    source = build(specimen.variant)[0].bfloat16()
    sites = insert_gates(source, specimen.table)
    shape = target_shape(specimen.table, every)
    errors: dict[str, list[Tensor]] = {"source": [], "export": []}
    for _ in range(4):
        gates, kept = draw(specimen.table, every, specimen.generator, hard=False)
        exact = specimen.logits(specimen.table, gates)
        set_gates(sites, specimen.table, {axis: gate.float() for axis, gate in gates.items()})
        written = cut_model(specimen.table, kept, gates, specimen.weights.__getitem__)
        fields = specimen.family.reshaped(specimen.config, shape, kept[Axis.LAYER].tolist())
        small = stock_model(stock_config(fields)).eval().bfloat16()
        small.load_state_dict(dict(written), strict=False)
        small.tie_weights()
        with torch.no_grad():
            errors["source"].append(source(specimen.tokens).logits - exact)
            errors["export"].append(small(specimen.tokens).logits - exact)
    size = {name: torch.stack(some).square().mean().sqrt() for name, some in errors.items()}
    assert 0 < size["export"] <= 1.5 * size["source"]
