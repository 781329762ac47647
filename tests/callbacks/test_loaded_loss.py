"""Loaded weights must have the held-out loss recorded in their directory."""

import json
from dataclasses import replace

import pytest
from manifests import export_manifest, run_manifest
from runs import run_here
from safetensors.torch import load_file, save_file

from llmshearing.callbacks.loaded_loss import stored_losses
from llmshearing.checkpoints.manifest import ExportManifest, HeldOutRecord, LossesAt
from llmshearing.export.export import export
from llmshearing.train import main

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours

RUN = run_manifest(batch=8, losses={"prose": 2.5}, losses_at=LossesAt(8, exact=True))
DATA = RUN.data


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
    manifest = ExportManifest.read(pruned)
    for domain, loss in manifest.run.losses.items():
        assert f"{domain} {loss:.4f} {loss:.4f}" in told

    weights = load_file(pruned / "model.safetensors")
    weights["model.norm.weight"] *= 3
    save_file(weights, pruned / "model.safetensors")
    replace(manifest, files={}).write(pruned)  # checksums would find the change first
    assert main([str(recipe_file), f"run.directory={tmp_path}/bad", *change]) == 2
    told = capfd.readouterr().err
    assert "do not have the held-out loss that its llmshearing.json records, to 1%: prose" in told
    assert "Traceback" not in told
    assert not list((tmp_path / "bad/checkpoints").glob("ba*"))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"batch": 9},
        {"losses_at": LossesAt(8, exact=False)},
        {"losses_at": None},
        {"data": replace(DATA, sequence_length=64)},
        {"data": replace(DATA, tokenizer={"fingerprint": "u"})},
        {"data": replace(DATA, held_out=HeldOutRecord({"prose": "q"}, 16))},
        {"data": replace(DATA, held_out=HeldOutRecord(DATA.held_out.fingerprints, 5))},
        {"data": replace(DATA, held_out=None)},
    ],
)
def test_only_a_loss_of_the_same_weights_and_rows_is_compared(tmp_path, change):
    export_manifest(run=replace(RUN, **change)).write(tmp_path)
    assert stored_losses(tmp_path, DATA) == ({} if change else {"prose": 2.5})


def test_a_one_shot_directory_is_not_compared(tmp_path):
    export_manifest(method="magnitude").write(tmp_path)
    assert stored_losses(tmp_path, DATA) == {}


def test_a_directory_from_elsewhere_is_not_compared(tmp_path):
    assert stored_losses(tmp_path, DATA) == {}
