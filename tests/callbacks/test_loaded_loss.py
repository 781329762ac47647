"""Loaded weights must have the held-out loss recorded in their directory."""

import json

import pytest
from runs import run_here
from safetensors.torch import load_file, save_file

from llmshearing.callbacks.loaded_loss import stored_losses
from llmshearing.export.export import export
from llmshearing.huggingface.weight_files import MANIFEST
from llmshearing.train import main

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

DATA = {
    "sequence_length": 32,
    "tokenizer": {"fingerprint": "t"},
    "held_out": {"fingerprints": {"prose": "p"}, "rows": None},
}
MANIFEST_OF_AN_EXPORT = {
    "batch": 8,
    "losses": {"prose": 2.5},
    "losses_at": {"batch": 8, "exact": True},
    "data": DATA,
}


def test_damaged_weights_stop_the_run_before_its_first_step(recipe_file, tmp_path, capfd):
    run_here(recipe_file, "run.duration=4ba", "pruning.freeze=0.5dur")
    pruned = export(tmp_path / "run", tmp_path / "pruned").directory
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe["data"]["split"] = "continue"
    recipe_file.write_text(json.dumps(recipe))
    change = [f"model.path={pruned}", "run.duration=1ba", "run.eval_interval=1ba"]
    run_here(recipe_file, f"run.directory={tmp_path}/good", *change)
    told = (tmp_path / "good/log.txt").read_text()
    losses = json.loads((pruned / MANIFEST).read_text())["losses"]
    for domain, loss in losses.items():
        assert f"{domain} {loss:.4f} {loss:.4f}" in told

    weights = load_file(pruned / "model.safetensors")
    weights["model.norm.weight"] *= 3
    save_file(weights, pruned / "model.safetensors")
    manifest = json.loads((pruned / MANIFEST).read_text())
    del manifest["format"]  # as before there were checksums, which would find the change first
    (pruned / MANIFEST).write_text(json.dumps(manifest))
    assert main([str(recipe_file), f"run.directory={tmp_path}/bad", *change]) == 2
    told = capfd.readouterr().err
    assert "do not have the held-out loss that its llmshearing.json says, to 1%: prose" in told
    assert "Traceback" not in told
    assert not list((tmp_path / "bad/checkpoints").glob("ba*"))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"batch": 9},
        {"losses_at": {"batch": 8, "exact": False}},
        {"losses_at": {}},
        {"data": DATA | {"sequence_length": 64}},
        {"data": DATA | {"tokenizer": {"fingerprint": "u"}}},
        {"data": DATA | {"held_out": {"fingerprints": {"prose": "q"}, "rows": None}}},
        {"data": DATA | {"held_out": {"fingerprints": {"prose": "p"}, "rows": 5}}},
        {"data": {k: v for k, v in DATA.items() if k != "held_out"}},
    ],
)
def test_only_a_loss_of_the_same_weights_and_rows_is_compared(tmp_path, change):
    (tmp_path / MANIFEST).write_text(json.dumps(MANIFEST_OF_AN_EXPORT | change))
    assert stored_losses(tmp_path, DATA) == ({} if change else {"prose": 2.5})


def test_a_directory_without_losses_is_not_compared(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"method": "magnitude"}))  # as prune-oneshot writes
    assert stored_losses(tmp_path, DATA) == {}


def test_a_directory_from_elsewhere_is_not_compared(tmp_path):
    assert stored_losses(tmp_path, DATA) == {}
