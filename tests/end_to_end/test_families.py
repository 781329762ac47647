"""A pruning run and an export for each family; one by default, the others are slow."""

import json
import shutil

import pytest
import torch
from models_zoo import ZOO
from runs import run_here, series
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.target import TargetSettings
from llmshearing.export.export import export
from llmshearing.export.oneshot import prune_oneshot, scorer

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

# Buffers that Pythia's published checkpoints hold besides their parameters.
STORED = {
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
    "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
    "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
}


def source(folder, family, tokenizer):
    """A small random model directory of a family."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64}
    grouped = {} if family == "gpt_neox" else {"num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(
        family, **sizes, **heads, **grouped, initializer_range=0.1, pad_token_id=None
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.model", folder)
    if family == "gpt_neox":
        weights = load_file(folder / "model.safetensors")
        save_file(weights | STORED, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "family",
    [f if f == "gpt_neox" else pytest.param(f, marks=pytest.mark.slow) for f in ZOO],
)
def test_prune_export_and_oneshot_give_the_target_shape(family, recipe_file, tiny_model, tmp_path):
    recipe = json.loads(recipe_file.read_text())
    recipe["model"]["path"] = str(source(tmp_path / "source", family, tiny_model))
    if family != "gpt_neox":
        recipe["target"]["kv_groups"] = 1
    recipe_file.write_text(json.dumps(recipe))
    lines = run_here(recipe_file, "run.duration=4ba")
    assert set(series(lines, "metrics/prose/loss")) == {4}
    pruned = export(tmp_path / "run", tmp_path / "pruned", allow_undecided=True)
    assert (pruned.shape.hidden, pruned.shape.layers, pruned.shape.heads) == (16, 2, 2)
    assert (pruned.shape.head_dim, pruned.shape.intermediate) == (8, 24)
    assert pruned.difference < 1e-5
    model, report = AutoModelForCausalLM.from_pretrained(pruned.directory, output_loading_info=True)
    assert not any(report.values())
    assert sum(p.numel() for p in model.parameters()) == pruned.parameters

    target = TargetSettings(**recipe["target"])
    cut = prune_oneshot(
        tmp_path / "source", tmp_path / "cut", target, scorer("magnitude"), method="magnitude"
    )
    assert cut.shape == pruned.shape
    assert cut.difference < 1e-5
