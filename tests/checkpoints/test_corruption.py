"""Damage to a checkpoint or an exported directory is found and named before anything is used."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import edit_manifest, flip_bit, write_manifest
from mds_trees import replace_rows
from runs import log_file, start_ranks

from llmshearing.checkpoints.layout import check_contents, latest_checkpoint, read_manifest
from llmshearing.checkpoints.manifest import SEAL
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import UserError
from llmshearing.export.directory import Format
from llmshearing.export.export import export
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.train import main

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]
KINDS = pytest.mark.parametrize("kind", ["full", "sharded"])
POSITIONS = 40  # of flipped bits, spread over a checkpoint's files
NOT_COMPARED = ("log.txt", ".lock")  # what a run that is refused may write


@pytest.fixture
def checkpoint(kind, finished_run, finished_sharded_run, tmp_path) -> Path:
    """A checkpoint of step 2, to damage."""
    run = finished_run if kind == "full" else finished_sharded_run
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    return copy / "checkpoints" / ("ba2.pt" if kind == "full" else "ba2")


@pytest.fixture
def resume(tmp_path, capfd):
    """Resume the run for two more steps; the exit status and what it printed."""

    def resumed(*overrides: str) -> tuple[int, str]:
        shutil.copy(tmp_path / "run/config.yaml", tmp_path / "recipe.yaml")
        directory = f"run.directory={tmp_path / 'run'}"
        capfd.readouterr()
        arguments = [str(tmp_path / "recipe.yaml"), directory, "run.duration=4ba", *overrides]
        return main(arguments), capfd.readouterr().err

    return resumed


def content(folder: Path) -> dict[Path, bytes]:
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in NOT_COMPARED
    }


def files_of(checkpoint: Path) -> list[Path]:
    return [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())


@KINDS
def test_a_flipped_bit_anywhere_is_found(checkpoint):
    files = files_of(checkpoint)
    for file in files:
        size = file.stat().st_size
        for number in range(POSITIONS // len(files)):
            offset = (2 * number + 1) * size // (2 * POSITIONS)
            flip_bit(file, offset, number % 8)
            with pytest.raises(UserError, match=f"{file}: the checksum is not the one in ba2.json"):
                check_contents(checkpoint)
            flip_bit(file, offset, number % 8)
    check_contents(checkpoint)


@KINDS
def test_resume_and_export_refuse_a_flipped_bit(checkpoint, resume, tmp_path):
    name = "lm_head.weight"
    weight = open_checkpoint(checkpoint).read(name).numpy().tobytes()
    file = next(file for file in files_of(checkpoint) if weight in file.read_bytes())
    flip_bit(file, file.read_bytes().index(weight) + 100)  # in the mantissa of one weight
    before = content(tmp_path / "run")
    status, printed = resume()
    assert status == 2
    assert f"{file}: the checksum is not the one in ba2.json" in printed
    assert "remove" in printed
    assert content(tmp_path / "run") == before
    with pytest.raises(UserError, match="the checksum is not the one in ba2"):
        export(tmp_path / "run", tmp_path / "out", allow_undecided=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.world_size(2)
@pytest.mark.parametrize("kind", ["sharded"])
def test_every_rank_ends_when_one_finds_damage(checkpoint, tmp_path):
    file = checkpoint / "__0_0.distcp"  # the second of three files is the second rank's
    flip_bit(file, 5000)
    shutil.copy(tmp_path / "run/config.yaml", tmp_path / "recipe.yaml")
    arguments = [str(tmp_path / "recipe.yaml"), f"run.directory={tmp_path / 'run'}"]
    ranks = start_ranks(2, tmp_path / "logs", [*arguments, "run.duration=4ba"])
    for rank, process in enumerate(ranks):
        process.join(timeout=300)
        log = log_file(tmp_path / "logs", rank).read_text()
        assert process.exitcode == 2, log
        assert f"{file}: the checksum is not the one in ba2.json" in log


@KINDS
@pytest.mark.parametrize("alone", [True, False])
def test_a_checkpoint_without_its_files_stops_the_run(checkpoint, resume, tmp_path, alone):
    """It neither resumes from an older one nor starts again, which would erase the metrics."""
    if not alone:
        earlier = checkpoint.with_name(checkpoint.name.replace("2", "1"))
        (shutil.copytree if checkpoint.is_dir() else shutil.copy)(checkpoint, earlier)
        write_manifest(earlier, replace(read_manifest(checkpoint), batch=1))
    names = [str(file.relative_to(checkpoint.parent)) for file in files_of(checkpoint)]
    checkpoint.rename(tmp_path / "aside")
    before = content(tmp_path / "run")
    status, printed = resume()
    assert status == 2
    assert "ba2.json is there, but not its checkpoint" in printed
    assert all(name in printed for name in names)
    assert f"to {'start from the first step' if alone else 'resume from ba1'}" in printed
    assert content(tmp_path / "run") == before
    with pytest.raises(UserError, match="is missing"):
        export(tmp_path / "run", tmp_path / "out", allow_undecided=True)


@pytest.mark.parametrize("kind", ["sharded"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "trainer.pt"])
def test_a_missing_file_of_a_sharded_checkpoint_is_named(checkpoint, resume, name):
    (checkpoint / name).unlink()
    status, printed = resume()
    assert status == 2
    assert f"{checkpoint / name} is missing" in printed


@KINDS
def test_a_manifest_of_another_step_is_refused(checkpoint, resume):
    later = checkpoint.with_name(checkpoint.name.replace("2", "3"))
    (shutil.copytree if checkpoint.is_dir() else shutil.copy)(checkpoint, later)
    shutil.copy(checkpoint.with_suffix(".json"), later.with_suffix(".json"))
    status, printed = resume()
    assert status == 2
    assert "ba3.json is the manifest of step 2" in printed
    assert f"not of {later.name}" in printed


@pytest.mark.parametrize("kind", ["full"])
def test_a_manifest_with_another_step_is_refused(checkpoint):
    edit_manifest(checkpoint, batch=7)
    with pytest.raises(UserError, match=r"ba2.json is the manifest of step 7"):
        read_manifest(checkpoint)


@pytest.mark.parametrize("kind", ["full"])
@pytest.mark.parametrize("change", ["a digit", "an entry removed", "the checksum removed"])
def test_a_changed_manifest_is_refused(checkpoint, resume, change):
    path = checkpoint.with_suffix(".json")
    manifest = json.loads(path.read_text())
    if change == "a digit":
        manifest["losses"]["prose"] += 1e-9
    else:
        del manifest["mixture" if change == "an entry removed" else SEAL]
    path.write_text(json.dumps(manifest))
    status, printed = resume()
    assert status == 2
    assert "is not a whole manifest of a run (its content is not what its checksum says)" in printed


@pytest.mark.parametrize("kind", ["full"])
@pytest.mark.parametrize("content", ["[]", "3", "{", "", '{"format": "new"}', '{"format": 99}'])
def test_what_is_no_manifest_is_refused(checkpoint, resume, content):
    checkpoint.with_suffix(".json").write_text(content)
    status, printed = resume()
    assert status == 2
    assert ("newer version" in printed) if "format" in content else ("not a whole" in printed)


@pytest.mark.parametrize("kind", ["full"])
def test_a_checkpoint_whose_manifest_is_missing_is_ignored_with_a_warning(checkpoint, caplog):
    """Its writing was interrupted, and the steps since the one before are repeated."""
    shutil.copy(checkpoint, checkpoint.with_name("ba3.pt"))
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(checkpoint.parents[1]) == checkpoint
    assert "ba3.pt: without ba3.json it is not whole" in caplog.text


@pytest.fixture
def exported(finished_run, tmp_path) -> Path:
    """An exported directory of two weight files or more."""
    out = tmp_path / "exported"
    export(finished_run, out, Format(max_shard_size="10KB"), allow_undecided=True)
    return out


def test_a_flipped_bit_in_exported_weights_is_found(exported):
    load_model(read_source(exported))
    files = sorted(exported.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        flip_bit(file, file.stat().st_size - 3)
        with pytest.raises(UserError, match=rf"{file}: the checksum is not .* llmshearing.json"):
            load_model(read_source(exported))
        flip_bit(file, file.stat().st_size - 3)


def test_weights_that_were_changed_on_purpose_need_no_manifest(exported):
    file = next(exported.glob("*.safetensors"))
    flip_bit(file, file.stat().st_size - 3)
    (exported / "llmshearing.json").unlink()
    load_model(read_source(exported))


@pytest.mark.parametrize("kind", ["full"])
def test_held_out_data_that_changed_stops_a_resumed_run(checkpoint, resume, tiny_tree, tmp_path):
    tree = shutil.copytree(tiny_tree, tmp_path / "tree")
    replace_rows(tree, "eval", "code")
    status, printed = resume(f"data.root={tree}")
    assert status == 2
    assert "held-out data code: found" in printed


def to_format_0(checkpoint: Path) -> None:
    """The manifest as it was before there were checksums."""
    manifest = json.loads(checkpoint.with_suffix(".json").read_text())
    for entry in (SEAL, "format"):
        del manifest[entry]
    manifest["masks"]["settled"] = manifest["masks"].pop("frozen")
    manifest["recipe"]["loading"] = manifest["recipe"].pop("mixture")
    pruning = manifest["recipe"]["pruning"]
    pruning["settle"] = pruning.pop("freeze")
    assert pruning["constraint"] == "released"
    manifest["files"] = {name: record["bytes"] for name, record in manifest["files"].items()}
    checkpoint.with_suffix(".json").write_text(json.dumps(manifest))


@KINDS
def test_a_checkpoint_of_format_0_is_resumed_and_exported(checkpoint, resume, tmp_path):
    to_format_0(checkpoint)
    export(tmp_path / "run", tmp_path / "out", allow_undecided=True)
    assert resume()[0] == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("ba2.json has no checksums (format 0): only the sizes") == 1


@KINDS
def test_a_checkpoint_of_format_0_is_checked_as_far_as_it_can_be(checkpoint, resume):
    to_format_0(checkpoint)
    file = files_of(checkpoint)[0]
    file.write_bytes(file.read_bytes()[:-1])
    status, printed = resume()
    assert status == 2
    assert f"{file} has {file.stat().st_size} bytes; ba2.json records" in printed
