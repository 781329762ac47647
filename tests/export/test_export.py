"""Export of a real run: any kind of checkpoint, shards, dtypes, undecided masks, bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_files import edit_manifest
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.architecture.axes import Axis
from llmshearing.checkpoints.manifest import ExportManifest, RunManifest
from llmshearing.checkpoints.safe_reading import load_trainer_state
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.export.directory import Format
from llmshearing.export.export import decide, export
from llmshearing.export.verification import gated_logits, verify
from llmshearing.huggingface.source import read_source
from llmshearing.pruning.distributions import HardConcrete
from llmshearing.pruning.selection import SMALLEST_KEPT_GATE, count_undecided
from llmshearing.pruning.surgery import cut_model

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def model_state(run):
    state = load_trainer_state(run / "checkpoints/ba2.pt")
    return {name: tensor.clone() for name, tensor in state["state"]["model"].items()}


def replace_checkpoint(run, state, kind="full"):
    """Write a checkpoint anew, of either kind, with its files in the manifest."""
    folder = run / "checkpoints"
    (folder / "ba2.pt").unlink()
    if kind == "full":
        path = folder / "ba2.pt"
        torch.save({"state": {"model": state}}, path)
    else:
        path = folder / "ba2"
        dcp.save({"model": state}, storage_writer=dcp.FileSystemWriter(path))
    edit_manifest(path)


def decided(state):
    """Masks that have decided, on as many units as the target has."""
    targets = {"hidden": 16, "layer": 2, "head": 2, "intermediate": 24}
    for axis, count in targets.items():
        logits = state[f"masks.log_alpha.{axis}"]
        logits.fill_(-5.0)
        logits[..., :count] = 5.0
    return state


def test_shards_and_one_file_hold_the_same(run, tmp_path):
    one = export(run, tmp_path / "one", allow_undecided=True)
    many = export(run, tmp_path / "many", Format(max_shard_size="10KB"), allow_undecided=True)
    whole = load_file(one.directory / "model.safetensors")
    shards = sorted(many.directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    # The embedding (128 x 16 floats) and the largest tensor that is smaller fit no 10 KB together.
    assert all(file.stat().st_size < 12_000 for file in shards)
    index = json.loads((many.directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * one.parameters
    parts = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    assert parts.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    for directory in (one.directory, many.directory):
        model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert not any(report.values())
        assert sum(p.numel() for p in model.parameters()) == one.parameters
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    assert one.difference < 1e-5


def test_both_kinds_of_checkpoint_give_the_same_files(run, tmp_path):
    export(run, tmp_path / "full", allow_undecided=True)
    replace_checkpoint(run, model_state(run), "sharded")
    export(run, tmp_path / "sharded", allow_undecided=True)
    left, right = (tmp_path / name / "model.safetensors" for name in ("full", "sharded"))
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrower_dtype_rounds_the_same_weights(run, tmp_path, dtype):
    wide = export(run, tmp_path / "wide", allow_undecided=True).directory
    narrow = export(run, tmp_path / "narrow", Format(dtype), allow_undecided=True).directory
    expected = load_file(wide / "model.safetensors")
    for name, tensor in load_file(narrow / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].to(getattr(torch, dtype))), name
    assert AutoModelForCausalLM.from_pretrained(narrow, dtype="auto").dtype == getattr(torch, dtype)


def test_weights_too_large_for_a_dtype_are_refused(run, tmp_path):
    state = model_state(run)
    name = next(name for name in state if name.endswith("embed_tokens.weight"))
    state[name][0, 0] = 1e6
    replace_checkpoint(run, state, "full")
    with pytest.raises(UserError, match=r"embed_tokens.* has values that torch\.float16 cannot"):
        export(run, tmp_path / "narrow", Format("float16"), allow_undecided=True)
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_gates_and_undecided_units_are_those_of_the_last_step_s_sharpness(run, sharpness):
    path = run / "checkpoints/ba2.json"
    manifest = RunManifest.read(path)
    manifest.recipe["pruning"]["distribution"] = "paper"
    replace(manifest, masks=replace(manifest.masks, sharpness=sharpness)).write(path)
    state = model_state(run)
    logits = torch.linspace(-3.0, 3.0, 32)
    state["masks.log_alpha.hidden"].copy_(logits)
    replace_checkpoint(run, state)
    checkpoint = open_checkpoint(run)
    decision = decide(checkpoint, read_source(checkpoint.manifest.source.path).table)
    gates = HardConcrete().deterministic(logits, sharpness)[16:]
    found = decision.gates[Axis.HIDDEN]
    assert torch.equal(found[16:], gates.clamp(min=SMALLEST_KEPT_GATE))
    assert not found[:16].any()
    keep = HardConcrete().keep_probability(logits, sharpness)
    undecided = count_undecided(keep, torch.arange(16, 32))
    assert decision.undecided["hidden"] == {"undecided": undecided, "units": 32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verification_sees_a_changed_weight(run, tmp_path, dtype):
    exported = export(run, tmp_path / "out", Format(dtype), allow_undecided=True, verify=False)
    assert exported.difference is None
    (tmp_path / "out/llmshearing.json").unlink()  # its checksums would find the change first
    checkpoint, table = (
        open_checkpoint(run),
        read_source(open_checkpoint(run).manifest.source.path).table,
    )
    decision = decide(checkpoint, table)

    def verified():
        tensors = cut_model(table, decision.kept, decision.gates, checkpoint.read)
        return verify(tmp_path / "out", gated_logits(checkpoint, decision.gates), tensors)

    assert verified() < (1e-5 if dtype == "float32" else 0.1)
    weights = load_file(tmp_path / "out/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3] *= 1.1
    save_file(weights, tmp_path / "out/model.safetensors")
    with pytest.raises(UserError, match="nothing was kept"):
        verified()


def test_verification_refuses_logits_that_are_off_by_one_part_in_ten_thousand(run, tmp_path):
    """The bound is 1e-5 of the largest logit; scaling the last norm scales every logit."""
    export(run, tmp_path / "out", allow_undecided=True, verify=False)
    (tmp_path / "out/llmshearing.json").unlink()  # its checksums would find the change first
    weights = load_file(tmp_path / "out/model.safetensors")
    weights["model.norm.weight"] *= 1 + 1e-4
    save_file(weights, tmp_path / "out/model.safetensors")
    checkpoint = open_checkpoint(run)
    decision = decide(checkpoint, read_source(checkpoint.manifest.source.path).table)
    logits = gated_logits(checkpoint, decision.gates)
    with pytest.raises(UserError, match="logits differ"):
        verify(tmp_path / "out", logits, [])


def test_undecided_masks_are_refused_unless_allowed(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "16 of 32 hidden, 72 of 144 intermediate, 1 of 3 layer units are neither" in told
    assert "--allow-undecided" in told
    assert not (tmp_path / "out").exists()
    assert main(["export", str(run), str(tmp_path / "out"), "--allow-undecided"]) == 0
    assert "undecided: 16 hidden units" in capsys.readouterr().out
    manifest = ExportManifest.read(tmp_path / "out")
    assert manifest.undecided["hidden"] == {"undecided": 16, "units": 32}
    assert "16 of 32 hidden" in (tmp_path / "out/README.md").read_text()


def test_a_settled_run_needs_no_flag_but_is_told_of(run, tmp_path):
    path = run / "checkpoints/ba2.json"
    masks = RunManifest.read(path).masks
    assert masks.frozen is False
    edit_manifest(path.with_suffix(".pt"), masks=replace(masks, frozen=True))
    assert export(run, tmp_path / "out").undecided["hidden"] == 16
    written = json.loads((tmp_path / "out/llmshearing.json").read_text())
    assert written["undecided"]["hidden"] == {"undecided": 16, "units": 32}


def test_decided_masks_need_no_flag(run, tmp_path):
    replace_checkpoint(run, decided(model_state(run)))
    exported = export(run, tmp_path / "out")
    assert not any(exported.undecided.values())
    manifest = ExportManifest.read(tmp_path / "out")
    assert manifest.kept["hidden"] == list(range(16))
    assert manifest.kept["layer"] == [0, 1]
    assert manifest.logits_difference == exported.difference
    # One unit on that should be off, and one in between, are both left open.
    state = model_state(run)
    state["masks.log_alpha.hidden"][20] = 4.9
    state["masks.log_alpha.layer"][2] = 0.0
    replace_checkpoint(run, state)
    found = export(run, tmp_path / "again", allow_undecided=True).undecided
    assert found == {"hidden": 1, "layer": 1, "head": 0, "intermediate": 0}


def test_the_model_card_tells_what_it_is(run, tmp_path):
    exported = export(run, tmp_path / "half", allow_undecided=True)
    card = (tmp_path / "half/README.md").read_text()
    manifest = ExportManifest.read(tmp_path / "half")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\n- pruned\n" in card.split("---")[1]
    assert f"{exported.parameters:,} parameters" in card
    assert "| hidden | 32 | 16 |" in card
    for domain, loss in manifest.run.losses.items():
        assert f"| {domain} |" in card
        assert f"| {loss:.4f} |" in card
    assert "8 rows" not in card
    assert "256 tokens of the 256 planned, in rows of 32" in card
    # The tokenizer that the card's lines load is the source's.
    assert AutoTokenizer.from_pretrained(tmp_path / "half").vocab_size == 128
    assert str(run.parent) not in card


def break_run(kind, run, tmp_path):
    """Break one thing; the arguments of the export that meets it."""
    checkpoint = run / "checkpoints/ba2.pt"
    extra = []
    if kind == "not a run":
        shutil.rmtree(run / "checkpoints")
    elif kind in ("no manifest", "no manifest in the run"):
        checkpoint.with_suffix(".json").unlink()
        return [str(checkpoint if kind == "no manifest" else run)]
    elif kind in ("manifest cut", "manifest of another program"):
        manifest = checkpoint.with_suffix(".json")
        text = "{}" if kind == "manifest of another program" else manifest.read_text()[:300]
        manifest.write_text(text)
        return [str(run)]
    elif kind == "half written":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "half written, as the manifest says":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
        edit_manifest(checkpoint)
    elif kind == "another model":
        state = model_state(run)
        del state["model.lm_head.weight"]
        replace_checkpoint(run, state)
    elif kind in ("larger vocabulary", "another tokenizer", "no tokenizer"):
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        if kind != "no tokenizer":
            import sentencepiece

            text = tmp_path / "text"
            text.write_text("the quick brown fox jumps over a lazy dog " * 50)
            sentencepiece.SentencePieceTrainer.train(
                input=str(text),
                model_prefix=str(folder / "tokenizer"),
                vocab_size=40 if kind == "another tokenizer" else 300,
                model_type="bpe",
                byte_fallback=kind == "larger vocabulary",
                hard_vocab_limit=False,
                minloglevel=2,
            )
        extra = ["--tokenizer", str(folder)]
    elif kind == "dtype":
        extra = ["--dtype", "int8"]
    elif kind == "shard size":
        extra = ["--max-shard-size", "5 pounds"]
    return [str(run), "--allow-undecided", *extra]


MESSAGES = {
    "not a run": "found no checkpoint in {run}; expected a run directory with checkpoints/ba<N>.pt",
    "no manifest": "found no ba2.json next to",
    "no manifest in the run": "found no checkpoint in {run} but ba2.pt without its ba2.json",
    "manifest cut": "ba2.json is not a whole manifest of a run (",
    "manifest of another program": "is not a whole manifest of a run (recipe: field required;",
    "half written": "not a whole checkpoint",
    "half written, as the manifest says": "is not a whole checkpoint",
    "another model": "1 weights are missing and 0 have another size, for example lm_head.weight",
    "larger vocabulary": "gives {ids} ids, but the model's vocabulary has 128",
    "another tokenizer": "is not the one that made the run's data",
    "no tokenizer": "found no tokenizer in",
    "dtype": "found dtype 'int8', expected one of float32",
    "shard size": "found the shard size '5 pounds', expected a size such as 5GB",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_each_mistake_has_its_message_and_leaves_nothing(run, tmp_path, capsys, kind):
    first, *rest = break_run(kind, run, tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["export", first, str(tmp_path / "out"), *rest]) == 2
    told = capsys.readouterr().err
    for part in MESSAGES[kind].format(run=run, ids="\0").split("\0"):
        assert part in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_is_not_empty_stays_as_it_was(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("kept")
    assert main(["export", str(run), str(tmp_path / "out"), "--allow-undecided"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_folder_that_cannot_be_made_is_named(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out, told in (
        (tmp_path / "file/out", f"error: {tmp_path}/file exists and is not empty"),
        (Path("/proc/out"), "error: cannot make /proc/out (No such file or directory); give a"),
    ):
        assert main(["export", str(run), str(out), "--allow-undecided"]) == 2
        assert capsys.readouterr().err.startswith(told)


def test_a_tokenizer_that_has_moved_is_taken_from_where_it_is(run, tmp_path, tiny_model):
    source = RunManifest.read(run / "checkpoints/ba2.json").source
    gone = replace(source, path=str(tmp_path / "gone"))
    edit_manifest(run / "checkpoints/ba2.pt", source=gone)
    with pytest.raises(
        UserError, match="export takes them from another directory with --tokenizer"
    ):
        export(run, tmp_path / "out", allow_undecided=True)
    export(run, tmp_path / "out", allow_undecided=True, tokenizer=tiny_model)
    assert (tmp_path / "out/tokenizer.model").is_file()


def test_the_config_names_the_stock_model_and_no_code(run, tmp_path):
    """A source without `architectures`, or with code of its own, must not be exported so."""
    source = RunManifest.read(run / "checkpoints/ba2.json").source
    config = {k: v for k, v in source.config.items() if k != "architectures"}
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    edit_manifest(run / "checkpoints/ba2.pt", source=replace(source, config=config))
    export(run, tmp_path / "out", allow_undecided=True)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in written


def test_a_tilde_in_paths_is_the_home_directory(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["export", "~/run", "~/out", "--allow-undecided"]) == 0
    assert (tmp_path / "out/config.json").is_file()
    assert not list(tmp_path.glob("~*"))
    assert main(["prune-oneshot", "~/out", "~/cut", "--method=random", "--target", "hidden=8"]) == 0
    assert (tmp_path / "cut/config.json").is_file()
