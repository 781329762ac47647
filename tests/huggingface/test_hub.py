"""Models of the hub: the real client of huggingface_hub against a server on this machine."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from packaging import version

from llmshearing.checkpoints.manifest import ExportManifest, RunManifest
from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.huggingface import hub as hub_module
from llmshearing.huggingface.hub import model_directory, repository_of
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.huggingface.weight_files import find_weights

ROOT = Path(__file__).parents[2]
NAME = "org/tiny"
EXTRA = {
    "modeling_tiny.py": b"raise SystemExit('code of the repository ran')",
    "onnx/model.onnx": b"not needed",
    "consolidated.safetensors": b"not needed",
    "README.md": b"not needed",
}


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub_module._log_once.cache_clear()


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def commit(hub, tiny_model) -> str:
    """The commit of a repository with the tiny model and more."""
    return hub.model(NAME, files_of(tiny_model) | EXTRA)


def test_a_name_gives_config_and_tokenizer_and_weights_follow_when_they_are_read(hub, commit):
    source = read_source(NAME)
    assert repository_of(source.path) == f"{NAME}@{commit}"
    got = {path.name for path in source.path.iterdir()}
    assert got == {"config.json", "generation_config.json", "tokenizer.model"}
    assert not hub.asked("large")
    load_model(source)
    assert {p.name for p in source.path.iterdir()} == got | {"model.safetensors"}


def test_a_model_of_the_hub_is_the_model_of_its_directory(hub, commit, tiny_model):
    ours, there = load_model(read_source(NAME)), load_model(read_source(tiny_model))
    tokens = torch.arange(12)[None]
    assert torch.equal(ours(tokens).logits, there(tokens).logits)


def test_a_whole_copy_is_read_without_asking_the_hub(hub, commit):
    directory = read_source(NAME).path
    find_weights(directory)
    hub.requests.clear()
    load_model(read_source(directory))
    assert hub.requests == []


def test_branches_tags_and_commits_are_revisions(hub, commit, tiny_model):
    repository = hub.models[NAME]
    files = files_of(tiny_model)
    files["config.json"] = files["config.json"].replace(
        b'rms_norm_eps": 1e-06', b'rms_norm_eps": 1e-05'
    )
    assert files["config.json"] != files_of(tiny_model)["config.json"]
    later = repository.commit(files, "refs/pr/1")
    assert read_source(f"{NAME}@refs/pr/1").config["rms_norm_eps"] == 1e-5
    assert repository_of(model_directory(f"{NAME}@{later}")) == f"{NAME}@{later}"
    assert repository_of(model_directory(f"{NAME}@main")) == f"{NAME}@{commit}"


def test_a_directory_of_that_name_has_precedence_and_the_log_says_so(
    hub, commit, tiny_model, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / NAME)
    with caplog.at_level(logging.INFO):
        source = read_source(NAME)
    assert source.path.resolve() == (tmp_path / NAME).resolve()
    assert hub.requests == []
    assert source.record().repository is None
    assert "org/tiny: the directory here, not the repository of that name" in caplog.text


def test_weights_of_several_files_and_of_pytorch(hub, tiny_model, tmp_path):
    model = load_model(read_source(tiny_model))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    hub.model("org/shards", files_of(tmp_path / "shards"))
    files = files_of(tmp_path / "shards")
    files = {name: content for name, content in files.items() if "safetensors" not in name}
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    hub.model("org/pickled", files)
    for name in ("org/shards", "org/pickled"):
        loaded = load_model(read_source(name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    assert len(find_weights(model_directory("org/shards"))) > 1


@pytest.fixture
def large(hub, tiny_model) -> bytes:
    """Weights of several pieces, in which the client writes what it gets; not a real file."""
    files = files_of(tiny_model)
    files["model.safetensors"] += bytes(30 << 20)
    hub.model(NAME, files)
    return files["model.safetensors"]


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub, large):
    directory = model_directory(NAME)
    hub.cut[digest_of_weights(hub)] = len(large) // 2
    refusals = []
    while not (directory / "model.safetensors").is_file():
        try:
            find_weights(directory)
        except UserError as error:  # an older client does not try again by itself
            refusals.append(str(error))
    assert len(refusals) <= 1
    assert all("run the same command again, which resumes" in refusal for refusal in refusals)
    check_resumed(hub, directory / "model.safetensors", large)


def check_resumed(hub, file, content, least=1):
    assert file.read_bytes() == content
    firsts = [first for method, path, first in hub.asked("large") if method == "GET"]
    assert firsts[0] == 0
    assert least <= firsts[1] <= len(content) // 2
    assert len(firsts) == 2


def digest_of_weights(hub):
    repository = hub.models[NAME]
    files = repository.commits[repository.refs["main"]]
    return hashlib.sha256(files["model.safetensors"]).hexdigest()


PROGRAM = f"""
from llmshearing.huggingface.hub import model_directory
from llmshearing.huggingface.weight_files import find_weights
print(find_weights(model_directory("{NAME}"))[0])
"""


def test_a_download_that_was_killed_resumes(hub, large):
    hub.stall[digest_of_weights(hub)] = len(large) // 2
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    wait_until(lambda: hub.stalled)
    time.sleep(1)  # for what was sent to be written
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The client of Transformers 5 keeps whole files alone; another process begins a file again.
    again = version.parse(huggingface_hub.__version__).major > 0
    check_resumed(hub, Path(done.stdout.strip()), large, least=0 if again else 1)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def refused(capsys, *words) -> str:
    """The one message of a command that ends with status 2."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_a_repository_that_does_not_exist(hub, capsys, tmp_path):
    message = refused(capsys, "throughput", "org/none")
    assert "found neither a directory org/none here nor a repository http://127.0.0.1" in message
    assert "correct the name" in message


def test_a_gated_repository(hub, tiny_model, capsys, monkeypatch):
    hub.model("org/gated", files_of(tiny_model), token="hf_reader", gated=True)
    message = refused(capsys, "throughput", "org/gated")
    assert "org/gated, which is gated: accept its licence at" in message
    assert "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    load_model(read_source("org/gated"))


def test_a_private_repository_needs_its_token(hub, tiny_model, monkeypatch):
    hub.model("org/private", files_of(tiny_model), token="hf_reader")
    with pytest.raises(UserError, match="for a private repository log in with"):
        read_source("org/private")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    read_source("org/private")


def test_an_unknown_revision(hub, commit, capsys):
    message = refused(capsys, "throughput", f"{NAME}@v9")
    assert f"found no revision 'v9' of {NAME}; expected a branch, tag or commit of" in message


def test_no_network_and_no_copy(capsys):
    message = refused(capsys, "throughput", NAME)
    assert f"found no directory {NAME} here, and cannot get http://127.0.0.1" in message
    assert "run the same command again" in message


def test_a_hub_that_is_ill(hub, capsys):
    hub.status = 500
    message = refused(capsys, "throughput", NAME)
    assert "500" in message
    assert f"cannot get http://127.0.0.1:{os.environ['HF_ENDPOINT'][-5:]}" in message


def test_offline_mode_reads_the_cache_alone(hub, commit, tiny_model):
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}

    def find():
        words = [sys.executable, "-c", PROGRAM]
        return subprocess.run(words, env=offline, capture_output=True, text=True)

    assert f"found no directory {NAME} here" in find().stderr
    find_weights(model_directory(NAME))
    hub.requests.clear()
    found = find()
    assert found.returncode == 0, found.stderr
    assert commit in found.stdout
    assert hub.requests == []


def test_without_network_a_whole_copy_is_enough(hub, commit):
    load_model(read_source(NAME))
    hub.status = 503
    source = read_source(NAME)
    load_model(source)
    assert source.record().repository == f"{NAME}@{commit}"


def test_without_network_a_copy_without_weights_is_refused(hub, commit, monkeypatch):
    source = read_source(NAME)
    hub.status = 503
    whole = f"found no whole weights of {NAME}@{commit}, neither on|has no whole copy"
    with pytest.raises(UserError, match=whole):  # a later client checks this itself
        load_model(source)


def test_a_name_that_is_no_repository(hub):
    with pytest.raises(UserError, match="found 'org/a--b', expected ORG/NAME"):
        model_directory("org/a--b")


def test_training_records_the_commit_and_export_takes_the_tokenizer_from_the_hub(
    hub, commit, recipe_file, tmp_path
):
    from runs import run_here

    steps = ["run.duration=2ba", "run.checkpoint_interval=2ba", "run.eval_interval=2ba"]
    run_here(recipe_file, f"model.path={NAME}", "pruning.sharpness=1.0", *steps)
    run = tmp_path / "run"
    assert RunManifest.read(run / "manifest.json").source.repository == f"{NAME}@{commit}"
    assert f"model {NAME}@{commit}, read from " in (run / "log.txt").read_text()
    shutil.rmtree(tmp_path / "hub-cache")
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--allow-undecided"]) == 0
    manifest = ExportManifest.read(out)
    assert manifest.source.repository == f"{NAME}@{commit}"
    card = (out / "README.md").read_text()
    assert f"\nbase_model: {NAME}\n" in card
    assert f"`{NAME}` at commit `{commit}`, pruned" in card
    assert (out / "tokenizer.model").is_file()


def test_commands_take_names(hub, commit, tiny_tree, tmp_path, capsys):
    name = f"{NAME}@{commit}"
    data = ["--data", f"{tiny_tree}/eval"]
    assert main(["evaluate", name, *data, "--json", str(tmp_path / "loss.json")]) == 0
    assert json.loads((tmp_path / "loss.json").read_text())["model"] == name
    scores = str(tmp_path / "scores.safetensors")
    assert main(["importance", name, *data, "--rows", "8", "--out", scores]) == 0
    half = ["--target", "hidden=16", "heads=2"]
    out = tmp_path / "half"
    assert main(["prune-oneshot", name, str(out), *half, "--importance", scores]) == 0
    assert ExportManifest.read(out).source.repository == name
    assert main(["throughput", name, "--prompt", "4", "--new-tokens", "2"]) == 0


RECIPES = sorted(
    path for stage in ("prune", "continue") for path in (ROOT / "yamls" / stage).glob("*.yaml")
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned_without_network_or_data(recipe, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["plan", str(recipe), "--gpus", "4"]) == 0
    assert "peak" in capsys.readouterr().out


def test_validate_downloads_no_weights(hub, commit, recipe_file):
    assert main(["validate", str(recipe_file), f"model.path={NAME}"]) == 0
    assert not hub.asked("large")


@pytest.fixture
def writer(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.writer)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client
def test_push_makes_a_private_repository_that_loads_like_the_directory(
    hub, writer, run, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--allow-undecided", "--push", "org/pruned"]) == 0
    repository = hub.models["org/pruned"]
    assert repository.token == hub.writer  # private
    assert repository.commits[repository.refs["main"]] == files_of(out)
    assert f"pushed org/pruned@{repository.refs['main']}" in capsys.readouterr().out
    ours, there = load_model(read_source("org/pruned")), load_model(read_source(out))
    assert all(
        torch.equal(one, other)
        for one, other in zip(ours.state_dict().values(), there.state_dict().values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client
def test_push_to_a_public_repository_leaves_it_public(hub, writer, run, tmp_path):
    hub.model("org/pruned", {"LICENSE": b"mine"})
    assert (
        main(
            ["export", str(run), str(tmp_path / "out"), "--allow-undecided", "--push", "org/pruned"]
        )
        == 0
    )
    repository = hub.models["org/pruned"]
    assert repository.token is None
    assert repository.commits[repository.refs["main"]]["LICENSE"] == b"mine"


def test_push_without_a_token_writes_nothing(hub, run, tmp_path, capsys):
    message = refused(
        capsys, "export", run, tmp_path / "out", "--allow-undecided", "--push", "org/pruned"
    )
    assert "--push: found no token for the hub" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pruned", "org/pruned@v1", "a/b/c"])
def test_push_wants_a_name(hub, writer, run, tmp_path, capsys, name):
    message = refused(capsys, "export", run, tmp_path / "out", "--push", name)
    assert f"--push: found {name!r}, expected ORG/NAME" in message
    assert not (tmp_path / "out").exists()


def test_push_with_a_wrong_token_writes_nothing(hub, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = refused(
        capsys, "export", run, tmp_path / "out", "--allow-undecided", "--push", "org/pruned"
    )
    assert "does not accept the token" in message
    assert not (tmp_path / "out").exists()


def test_a_push_that_is_refused_keeps_the_export(hub, writer, run, tmp_path, capsys):
    hub.read_only = True
    message = refused(
        capsys, "export", run, tmp_path / "out", "--allow-undecided", "--push", "org/pruned"
    )
    assert f"wrote {tmp_path / 'out'}, but could not push it to org/pruned" in message
    assert "hf upload org/pruned" in message
    load_model(read_source(tmp_path / "out"))
