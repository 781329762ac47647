"""Manifests: what is written is read, format 0 too, and differences between runs are named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from manifests import SHAPE, export_manifest, run_manifest

from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import (
    EXPORT_FILE,
    ExportManifest,
    HeldOutRecord,
    LossesAt,
    RunManifest,
)
from llmshearing.checksums import FileRecord
from llmshearing.errors import UserError
from llmshearing.pruning.schedule import MaskState

SAMPLES = Path(__file__).parent / "format_0"  # written by the code before there was a format
TARGET = Shape(16, 2, 2, 2, 8, 24, 128)
FULL = run_manifest(
    target=SHAPE,
    batch=4,
    losses={"prose": 0.1 + 0.2, "no": float("inf")},
    losses_at=LossesAt(4, exact=True),
    mixture={"weights": {"prose": 1.0}},
    masks=MaskState(step=4, ramp=1 / 3, frozen=True),
    files={"ba4.pt": FileRecord(10, "ab")},
)


def test_a_run_manifest_is_read_as_written(tmp_path):
    for manifest in (run_manifest(), FULL):
        manifest.write(tmp_path / "ba4.json")
        assert RunManifest.read(tmp_path / "ba4.json") == manifest


def test_an_export_manifest_is_read_as_written(tmp_path):
    for manifest in (
        export_manifest(method="random"),
        export_manifest(run=FULL, undecided={"hidden": {"undecided": 1, "units": 8}}),
    ):
        manifest.write(tmp_path)
        assert ExportManifest.read(tmp_path) == manifest
    (tmp_path / EXPORT_FILE).unlink()
    assert ExportManifest.read(tmp_path) is None


@pytest.mark.parametrize("name", ["run.json", "ba2.json"])
def test_run_manifests_of_format_0_are_read(name):
    manifest = RunManifest.read(SAMPLES / name)
    assert manifest.format == 0
    assert manifest.batch == 2
    assert manifest.target == TARGET
    assert manifest.masks == MaskState(step=2, ramp=1.0, sharpness=1.0, frozen=False)
    assert manifest.losses_at == LossesAt(2, exact=True)
    assert manifest.losses["prose"] == 4.971113003575336
    assert manifest.source.shape.hidden == 32
    assert manifest.data.held_out is not None
    assert manifest.files == ({"ba2.pt": FileRecord(483693)} if name == "ba2.json" else {})


def test_recipes_of_format_0_have_their_names_of_today():
    recipe = RunManifest.read(SAMPLES / "ba2.json").recipe
    assert recipe["pruning"]["distribution"] == recipe["pruning"]["constraint"] == "paper"
    assert recipe["pruning"]["freeze"] == "1dur"
    assert recipe["pruning"]["init_log_alpha"] == 4.0
    assert recipe["mixture"]["start_with"] == "weights"
    assert not {"settle", "choose", "start"} & recipe["pruning"].keys()
    assert "loading" not in recipe


def test_export_manifests_of_format_0_are_read(tmp_path):
    (tmp_path / EXPORT_FILE).write_text((SAMPLES / "export.json").read_text())
    manifest = ExportManifest.read(tmp_path)
    assert manifest.shape == TARGET
    assert manifest.kept["hidden"][:3] == [1, 2, 5]
    assert manifest.logits_difference == 2.384185791015625e-07
    assert manifest.files == {}
    assert manifest.run.batch == 2
    assert manifest.run.masks.frozen is False


def test_one_shot_manifests_of_format_0_are_read(tmp_path):
    (tmp_path / EXPORT_FILE).write_text((SAMPLES / "oneshot.json").read_text())
    manifest = ExportManifest.read(tmp_path)
    assert manifest.method == "magnitude"
    assert manifest.run is None
    assert manifest.shape.hidden == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "data: "),
        ({"losses": {"prose": "low"}}, "losses.prose: input should be a valid number"),
        ({"source": {"path": "x"}}, "source.shape: field required"),
        ({"files": []}, "'list' object has no attribute 'items'"),
        ({"format": 2}, "has format 2, expected at most 1"),
        ({"format": "1"}, "has format 1, expected at most 1"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_named(tmp_path, change, message):
    content = json.loads((SAMPLES / "ba2.json").read_text())
    (tmp_path / "ba2.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError) as caught:
        RunManifest.read(tmp_path / "ba2.json")
    assert message in str(caught.value)


def other(part, **changes):
    return {part: replace(getattr(FULL, part), **changes)}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"recipe": {"target": {"hidden": 4}, "pruning": {}}}, "stage: found continued"),
        (other("source", config={"model_type": "x"}), "model model_type: found llama, expected x"),
        (other("source", shape=replace(SHAPE, heads=1)), "model heads: found 2, expected 1"),
        (other("data", sequence_length=8), "data sequence_length: found 256, expected 8"),
        (
            other("data", tokenizer={"fingerprint": "t"}),
            "tokenizer fingerprint: found 333333333333",
        ),
        (other("data", fingerprints={"code": "c"}), "training data prose: found 111111111111"),
        (other("data", held_out=HeldOutRecord({}, 16)), "held-out data prose: found 222222222222"),
        (other("data", held_out=HeldOutRecord(FULL.data.held_out.fingerprints, 9)), None),
        (other("data", held_out=None), None),
        (other("source", path="elsewhere"), None),
        ({"tokens": 1, "losses": {}, "batch": 9, "versions": {}}, None),
    ],
)
def test_differences_that_keep_a_run_from_resuming(change, difference):
    found = FULL.differences(replace(FULL, **change))
    assert found[:1] == [] if difference is None else found[0].startswith(difference)


def test_masks_learned_another_way_are_a_difference():
    def learned(**settings):
        pruning = {"distribution": "linear", "constraint": "released"} | settings
        target = {"hidden": 4}
        return replace(FULL, recipe={"target": target, "pruning": pruning})

    found = learned().differences(learned(distribution="paper", constraint="paper"))
    assert found == [
        "pruning distribution: found linear, expected paper",
        "pruning constraint: found released, expected paper",
    ]
    assert learned().differences(learned(freeze="1dur")) == []


def test_a_manifest_is_read_without_torch():
    """A plan reads one, and must not wait for torch."""
    code = "import sys, llmshearing.checkpoints.manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
