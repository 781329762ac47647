"""What goes wrong with checkpoints: one message, exit status 2, the last good one intact."""

import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mds_trees import replace_rows
from runs import launch
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.checkpoints.layout import FOLDER, whole_checkpoints
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.data.schema import tokenizer_fingerprint
from llmshearing.train import main

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours
KINDS = pytest.mark.parametrize("kind", ["full", "sharded"])
SHORT = ("run.duration=2ba", "run.checkpoint_interval=2ba", "run.eval_interval=2ba")
LONGER = ("run.duration=4ba", *SHORT[1:])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(recipe_file, tmp_path, capfd):
    """A run ends with status 2 and one message, and leaves the checkpoints as they were."""

    def run(*overrides):
        folder = tmp_path / "run" / FOLDER
        before = content(folder)
        capfd.readouterr()
        assert main([str(recipe_file), *overrides]) == 2
        message = capfd.readouterr().err
        assert message.count("error: ") == 1
        assert "Traceback" not in message
        assert content(folder) == before
        return message

    return run


@pytest.fixture
def trained(recipe_file):
    """A run of two steps, whose checkpoint the tests hand to another recipe."""

    def run(*overrides):
        assert main([str(recipe_file), *SHORT, *overrides]) == 0

    return run


@contextmanager
def files_of_at_most(size):
    """The system refuses to let a file grow further, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@KINDS
def test_a_full_disk_is_one_message_and_keeps_earlier_checkpoints(
    trained, refused, recipe_file, tmp_path, kind
):
    trained(f"run.checkpoint={kind}")
    with files_of_at_most(200_000):
        message = refused(*LONGER, f"run.checkpoint={kind}")
    name = "ba4.pt" if kind == "full" else "ba4"
    assert f"cannot write the checkpoint {tmp_path / 'run' / FOLDER / name}" in message
    assert "File too large" in message
    assert "MiB are free" in message
    assert f"it resumes from ba2{'.pt' * (kind == 'full')}" in message
    open_checkpoint(tmp_path / "run")
    assert main([str(recipe_file), *LONGER, f"run.checkpoint={kind}"]) == 0  # there is room again


def test_a_full_disk_while_the_recipe_is_written_is_one_message(recipe_file, capfd):
    with files_of_at_most(400):  # standard error is a file here as well
        assert main([str(recipe_file)]) == 2
    message = capfd.readouterr().err
    assert "config.yaml: File too large. Make room" in message
    assert "Traceback" not in message


@pytest.mark.slow
@pytest.mark.world_size(2)
@KINDS
def test_a_full_disk_stops_every_rank_and_keeps_earlier_checkpoints(
    trained, recipe_file, tmp_path, kind
):
    trained(f"run.checkpoint={kind}")
    before = content(tmp_path / "run" / FOLDER)
    overrides = (*LONGER, f"run.checkpoint={kind}", "parallelism=fsdp2")
    with files_of_at_most(100_000):
        done = launch(2, recipe_file, *overrides)
    assert done.returncode == 2, done.stderr
    assert "cannot write the checkpoint" in done.stdout + done.stderr
    assert content(tmp_path / "run" / FOLDER) == before


@pytest.mark.parametrize("what", ["a file", "a folder of the system"])
def test_an_unwritable_checkpoint_folder_is_one_message(recipe_file, tmp_path, capfd, what):
    folder = tmp_path / "run" / FOLDER
    folder.parent.mkdir()
    if what == "a file":
        folder.write_text("")
    else:
        folder.symlink_to("/proc/sys")  # where root cannot create files either
    assert main([str(recipe_file)]) == 2
    message = capfd.readouterr().err
    assert f"run.directory: cannot write checkpoints into {folder}" in message
    assert "Traceback" not in message


def test_a_checkpoint_of_the_other_stage_is_refused(trained, refused, recipe_file):
    given = json.loads(recipe_file.read_text())
    trained()
    written = Path(given["run"]["directory"]) / "config.yaml"
    before = written.read_text()
    recipe_file.write_text(json.dumps({k: v for k, v in given.items() if k != "target"}))
    assert "stage: found pruning, expected continued pre-training" in refused(*LONGER)
    assert written.read_text() == before
    directory = f"{given['run']['directory']}-2"
    assert main([str(recipe_file), *SHORT, f"run.directory={directory}"]) == 0
    recipe_file.write_text(json.dumps(given))
    message = refused(*LONGER, f"run.directory={directory}")
    assert (
        "ba2.pt belongs to another run (stage: found continued pre-training, expected pruning)"
        in message
    )


def test_a_checkpoint_of_another_model_target_or_data_is_refused(
    trained, refused, tiny_model, tiny_tree, tmp_path
):
    trained()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = AutoConfig.from_pretrained(other)
    config.intermediate_size = 40
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    message = refused(*LONGER, f"model.path={other}")
    assert "model intermediate: found 48, expected 40" in message
    message = refused(*LONGER, "target.heads=3")
    assert "target heads: found 2, expected 3" in message
    tree = shutil.copytree(tiny_tree, tmp_path / "tree")
    replace_rows(tree, "prune", "code")
    message = refused(*LONGER, f"data.root={tree}")
    assert "training data code: found " in message


def test_a_checkpoint_of_another_gate_distribution_is_refused(trained, refused):
    trained()
    message = refused(*LONGER, "pruning.distribution=paper")
    assert "pruning distribution: found linear, expected paper" in message
    message = refused(*LONGER, "pruning.constraint=paper")
    assert "pruning constraint: found released, expected paper" in message


def test_changed_recipe_keys_are_logged_on_resume(trained, recipe_file, tmp_path):
    """A batch of another size counts its own tokens; weights of the start come too late."""
    trained()
    weights = "mixture.weights={prose: 0.5, code: 0.3, letters: 0.2}"
    given = (*LONGER, "data.global_batch=16", "run.log_interval=1ba", weights)
    assert main([str(recipe_file), *given]) == 0
    message = (tmp_path / "run/log.txt").read_text()
    assert "the recipe has changed since ba2.pt: data.global_batch was 8, is 16\n" in message
    late = "mixture.weights.prose was None, is 0.5, without effect: the checkpoint's value is used"
    assert late in message
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rows = {line["batch"]: line["tokens"] // 32 for line in lines}
    assert rows == {1: 8, 2: 16, 3: 32, 4: 48}


def test_a_lower_learning_rate_takes_effect_on_resume(trained, recipe_file, tmp_path):
    """As the message about a gradient that is not finite advises."""
    trained()
    assert main([str(recipe_file), *LONGER, "optimizer.learning_rate=1e-30"]) == 0
    first, last = (open_checkpoint(tmp_path / "run" / FOLDER / f"ba{n}.pt") for n in (2, 4))
    name = next(name for name in first.names() if name.endswith("embed_tokens.weight"))
    assert torch.equal(first.read(name), last.read(name))


def test_a_checkpoint_of_another_tokenizer_is_refused(
    trained, refused, tiny_model, tiny_tree, tmp_path
):
    trained()
    model = shutil.copytree(tiny_model, tmp_path / "other")
    with (model / "tokenizer.model").open("ab") as file:
        file.write(b"\xc0\x3e\x01")  # a field that no reader knows
    tree = shutil.copytree(tiny_tree, tmp_path / "tree")
    manifest = json.loads((tree / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = tokenizer_fingerprint(model)
    (tree / "manifest.json").write_text(json.dumps(manifest))
    message = refused(*LONGER, f"model.path={model}", f"data.root={tree}")
    assert "tokenizer fingerprint: found " in message


def test_a_missing_or_truncated_checkpoint_file_is_named(trained, refused, recipe_file, tmp_path):
    trained("run.checkpoint=sharded")
    shard = tmp_path / "run" / FOLDER / "ba2/__0_0.distcp"
    size = shard.stat().st_size
    shard.rename(tmp_path / "aside")
    assert f"{shard} is missing; ba2.json records {size} bytes" in refused(*LONGER)
    shutil.rmtree(tmp_path / "run")
    trained()
    file = tmp_path / "run" / FOLDER / "ba2.pt"
    file.write_bytes(file.read_bytes()[:-100])
    message = refused(*LONGER)
    assert f"{file} has {file.stat().st_size} bytes; ba2.json records" in message
    assert "not a whole checkpoint" in message


@KINDS
def test_a_checkpoint_cut_short_is_never_loaded(recipe_file, tmp_path, kind):
    overrides = (f"run.checkpoint={kind}", "run.checkpoint_interval=1ba", "run.eval_interval=4ba")
    assert main([str(recipe_file), "run.duration=2ba", *overrides]) == 0
    run = tmp_path / "run"
    newest = whole_checkpoints(run)[-1]
    newest.with_suffix(".json").unlink()
    half = newest if kind == "full" else newest / "__0_0.distcp"
    half.write_bytes(half.read_bytes()[:1000])
    assert main([str(recipe_file), "run.duration=4ba", *overrides]) == 0
    assert "resuming from" in (run / "log.txt").read_text()
    assert f"{FOLDER}/ba1" in (run / "log.txt").read_text()
    assert [path.stem for path in whole_checkpoints(run)] == ["ba3", "ba4"]
