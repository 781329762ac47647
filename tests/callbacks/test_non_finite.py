"""Errors of losses and gradients that are not finite name their cause."""

import shutil

import pytest
import torch
from composer.core import Callback
from runs import run_here
from safetensors.torch import load_file, save_file

from llmshearing import preflight
from llmshearing.callbacks.non_finite import RowGradients
from llmshearing.errors import UserError
from llmshearing.models.shearing import unwrapped
from llmshearing.train import build_trainer

pytestmark = pytest.mark.filterwarnings("default")  # allow Composer's own warnings


def test_source_weights_that_are_not_finite_are_named(recipe_file, tiny_model, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="weights of the source are not") as caught:
        run_here(recipe_file, f"model.path={source}")
    assert "model.layers.1.mlp.up_proj.weight. Take another model.path" in str(caught.value)
    assert "learning rate" not in str(caught.value)


class Planter(Callback):
    """Makes the gradient of one row of the batch infinite at the second block, in one step."""

    def __init__(self, step, row):
        self.step, self.row, self.handles = step, row, []

    def before_forward(self, state, logger):
        if state.timestamp.batch.value == self.step and not self.handles:
            block = unwrapped(state.model).model.get_submodule("model.layers.1")
            self.handles = [block.register_forward_hook(self.plant)]

    def plant(self, block, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.register_hook(self.spoil)

    def spoil(self, gradient):
        spoiled = gradient.clone()
        spoiled[self.row, 0, 0] = torch.inf
        return spoiled


def test_the_sample_at_fault_is_named_before_the_optimizer_step(recipe_file, tmp_path):
    given = ("data.microbatch=8", "run.checkpoint_interval=1ba", "data.eval_rows=1")
    recipe, inputs = preflight.resolve(recipe_file, given)
    trainer = build_trainer(recipe, inputs, extra_callbacks=[Planter(step=2, row=3)])
    with pytest.raises(UserError, match=r"not finite at step 2, on rank 0 in \w+ \(samples 19\)"):
        trainer.fit()
    weights = unwrapped(trainer.state.model).state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    trainer.close()


def test_gradients_of_rows_are_summed_over_tokens_and_dimensions():
    rows = RowGradients()
    assert rows.odd_rows() == []
    embedding = torch.nn.Embedding(5, 3)
    embedding.register_forward_hook(rows._follow)
    for factor in (torch.tensor([1.0, torch.inf]), torch.tensor([torch.nan, 1.0])):
        (embedding(torch.zeros(2, 4, dtype=torch.long)).sum((1, 2)) * factor).sum().backward()
    assert rows.odd_rows() == [1, 2]  # two microbatches of two rows, numbered together
    rows.clear()
    assert rows.odd_rows() == []
