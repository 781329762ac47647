"""Both stages through their real parts, on a model of a few thousand parameters."""

import json

import pytest
import torch
from runs import run_here, series
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llmshearing.checkpoints.manifest import ExportManifest
from llmshearing.config import load_recipe
from llmshearing.errors import UserError
from llmshearing.export.directory import Format
from llmshearing.export.export import export

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


def test_prune_export_continue_export(recipe_file, tmp_path):
    lines = run_here(recipe_file)
    run = tmp_path / "run"
    assert [line["batch"] for line in lines] == list(range(1, 9))
    assert set(series(lines, "metrics/prose/loss")) == {4, 8}
    for file in ("config.yaml", "log.txt", "mixture.yaml", "masks/ba8.safetensors"):
        assert (run / file).is_file()
    assert load_recipe(run / "config.yaml") == load_recipe(recipe_file)

    pruned = export(run, tmp_path / "pruned")
    assert (pruned.shape.hidden, pruned.shape.layers, pruned.shape.heads) == (16, 2, 2)
    assert pruned.shape.intermediate == 24
    assert pruned.difference < 1e-5
    model, report = AutoModelForCausalLM.from_pretrained(pruned.directory, output_loading_info=True)
    assert not any(report.values())
    assert sum(p.numel() for p in model.parameters()) == pruned.parameters
    manifest = ExportManifest.read(pruned.directory)
    assert len(manifest.kept["hidden"]) == 16
    assert [len(row) for row in manifest.kept["head"]] == [2, 2, 2]
    with safe_open(str(run / "masks/ba8.safetensors"), "pt") as masks:
        for axis, units in manifest.kept.items():
            assert masks.get_tensor(f"{axis}.kept").tolist() == units
    # The run's last held-out loss is that of the exact target shape, so it is the export's too.
    before = manifest.run.losses

    second = tmp_path / "continue.yaml"
    recipe = json.loads(recipe_file.read_text())
    del recipe["target"]
    recipe["model"]["path"] = str(pruned.directory)
    recipe["run"]["directory"] = str(tmp_path / "second")
    recipe["data"]["split"] = "continue"
    second.write_text(json.dumps(recipe))
    lines = run_here(second, "optimizer.learning_rate=1e-12", "run.eval_interval=1ba")
    first = {name: series(lines, f"metrics/{name}/loss")[1] for name in before}
    assert first == pytest.approx(before, abs=1e-5)
    sheared = export(tmp_path / "second", tmp_path / "sheared", Format("bfloat16"))
    assert sheared.shape == pruned.shape


def test_running_a_finished_run_again_changes_nothing(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=4ba")
    before = (tmp_path / "run/checkpoints/ba4.pt").stat().st_mtime_ns
    assert run_here(recipe_file, "run.duration=4ba") == lines
    assert (tmp_path / "run/checkpoints/ba4.pt").stat().st_mtime_ns == before


def test_microbatches_do_not_change_the_losses(recipe_file, tmp_path):
    runs = [
        run_here(recipe_file, f"data.microbatch={8 // parts}", f"run.directory={tmp_path}/m{parts}")
        for parts in (1, 2, 4)
    ]
    for name in ("loss/train/ce", "loss/train/lagrangian", "optimizer/gradient_norm"):
        first = series(runs[0], name)
        for other in runs[1:]:
            assert series(other, name) == pytest.approx(first, abs=1e-6, rel=1e-6), name


def test_activation_checkpointing_changes_nothing(recipe_file, tmp_path):
    lines = run_here(recipe_file, "run.duration=4ba")
    again = run_here(
        recipe_file,
        "run.duration=4ba",
        "model.activation_checkpointing=true",
        f"run.directory={tmp_path}/again",
    )
    for name in ("loss/train/total", "optimizer/gradient_norm", "optimizer/gradient_norm_masks"):
        assert series(again, name) == series(lines, name)


def test_bfloat16_without_a_gpu_is_refused(recipe_file):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which can do it")
    with pytest.raises(UserError, match="needs a GPU"):
        run_here(recipe_file, "model.precision=amp_bf16")
