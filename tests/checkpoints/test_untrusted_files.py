"""No file that a run or a command reads can execute code.

Every attack is a pickle (or a module) that makes a folder. Manifests are written to match, since
whoever can put a file there can put a manifest next to it.
"""

import ast
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_files import edit_manifest
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

import llmshearing
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.checkpoints.safe_reading import _IndexUnpickler, load_trainer_state
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.config import load_recipe
from llmshearing.errors import UserError
from llmshearing.export.export import export
from llmshearing.huggingface import tokenizer_files
from llmshearing.huggingface.source import load_model, read_source
from llmshearing.mixture.references import References
from llmshearing.pruning.scores import load_scores
from llmshearing.reports.run_directory import read_run
from llmshearing.train import main

pytestmark = [
    pytest.mark.filterwarnings("default"),  # Composer's own warnings are not ours
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]
KEY = "model.model.lm_head.weight"


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def attack(tmp_path):
    """The attack; after the test, nothing has executed it."""
    attack = Attack(tmp_path / "executed")
    yield attack
    assert not attack.folder.exists()


@pytest.fixture
def sharded(finished_sharded_run, tmp_path) -> Path:
    """A sharded checkpoint to change."""
    return Path(shutil.copytree(finished_sharded_run, tmp_path / "run")) / "checkpoints/ba2"


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def refused(checkpoint: Path, tmp_path: Path, capfd) -> None:
    """Neither export nor a resumed run takes a checkpoint, and neither changes the run."""
    run = checkpoint.parents[1]
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"not a whole checkpoint|does not fit the model"):
        export(run, tmp_path / "out", allow_undecided=True)
    assert not (tmp_path / "out").exists()
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(run / "config.yaml", recipe)
    capfd.readouterr()
    assert main([str(recipe), f"run.directory={run}", "run.duration=4ba"]) == 2
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_the_attack_works_on_a_reader_that_unpickles(tmp_path):
    attack = Attack(tmp_path / "executed")
    torch.load(io.BytesIO(saved({"weight": attack})), weights_only=False)
    assert attack.folder.is_dir()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_an_index_written_by_any_version_of_python_is_read(module):
    content = b"\x80\x02c" + module.encode() + b"\nPosixPath\n(X\x01\0\0\0atR."
    assert _IndexUnpickler(io.BytesIO(content)).load() == Path("a")


@pytest.mark.parametrize("place", ["model", "optimizers", "rng", "callbacks", "timestamp", "top"])
def test_a_full_checkpoint(run, tmp_path, attack, capfd, place):
    path = run / "checkpoints/ba2.pt"
    state = load_trainer_state(path)
    if place == "top":
        state = attack
    elif place == "rng":
        state["rng"] = [attack]
    else:
        state["state"][place] = attack
    path.write_bytes(saved(state))
    edit_manifest(path)
    refused(path, tmp_path, capfd)


def test_a_full_checkpoint_in_the_legacy_format(run, tmp_path, attack, capfd):
    path = run / "checkpoints/ba2.pt"
    torch.save({"state": {"model": attack}}, path, _use_new_zipfile_serialization=False)
    edit_manifest(path)
    refused(path, tmp_path, capfd)


def test_a_tensor_that_the_index_calls_bytes(sharded, tmp_path, attack, capfd):
    """torch's planner loads such an entry with weights_only=False."""
    index = pickle.loads((sharded / ".metadata").read_bytes())  # noqa: S301 - our own
    assert KEY in index.state_dict_metadata
    data = sharded / "__0_0.distcp"
    content, payload = data.read_bytes(), saved(attack)
    index.state_dict_metadata[KEY] = BytesStorageMetadata()
    index.storage_data[MetadataIndex(KEY)] = _StorageInfo(data.name, len(content), len(payload))
    data.write_bytes(content + payload)
    (sharded / ".metadata").write_bytes(pickle.dumps(index))
    edit_manifest(sharded)
    refused(sharded, tmp_path, capfd)


def test_a_tensor_of_a_sharded_checkpoint(sharded, tmp_path, attack, capfd):
    """The index says tensor, and the place it names holds a pickle."""
    index = pickle.loads((sharded / ".metadata").read_bytes())  # noqa: S301 - our own
    data = sharded / "__0_0.distcp"
    content, payload = data.read_bytes(), saved(attack)
    index.storage_data[next(i for i in index.storage_data if i.fqn == KEY)] = _StorageInfo(
        data.name, len(content), len(payload)
    )
    data.write_bytes(content + payload)
    (sharded / ".metadata").write_bytes(pickle.dumps(index))
    edit_manifest(sharded)
    refused(sharded, tmp_path, capfd)


@pytest.mark.parametrize("place", ["whole", "size", "planner data", "storage meta"])
def test_a_foreign_class_in_the_index(sharded, tmp_path, attack, capfd, place):
    index = pickle.loads((sharded / ".metadata").read_bytes())  # noqa: S301 - our own
    if place == "whole":
        index = attack
    elif place == "size":
        index.state_dict_metadata[KEY].size = attack
    elif place == "planner data":
        index.planner_data = attack
    else:
        index.storage_meta = attack
    (sharded / ".metadata").write_bytes(pickle.dumps(index))
    edit_manifest(sharded)
    refused(sharded, tmp_path, capfd)


def test_an_index_that_changes_a_class(sharded, tmp_path, capfd):
    """Setting an attribute of a class that the index may name would outlive the reading."""
    name = TensorStorageMetadata.__name__
    # Push the class and the state (None, {"evil": 1}), then set the state on the class.
    stream = f"ctorch.distributed.checkpoint.metadata\n{name}\n(N(S'evil'\nI1\ndtb."
    (sharded / ".metadata").write_bytes(stream.encode())
    edit_manifest(sharded)
    refused(sharded, tmp_path, capfd)
    assert not hasattr(TensorStorageMetadata, "evil")


@pytest.mark.parametrize("file", ["../ba2.pt", "/etc/passwd", "__9_9.distcp"])
def test_an_index_that_names_a_file_of_others(sharded, tmp_path, capfd, file):
    index = pickle.loads((sharded / ".metadata").read_bytes())  # noqa: S301 - our own
    place = next(i for i in index.storage_data if i.fqn == KEY)
    index.storage_data[place] = _StorageInfo(file, 0, 10)
    (sharded / ".metadata").write_bytes(pickle.dumps(index))
    edit_manifest(sharded)
    refused(sharded, tmp_path, capfd)


@pytest.mark.parametrize("place", ["state", "rng", "param_groups", "top"])
def test_the_trainer_state_of_a_sharded_checkpoint(sharded, attack, tmp_path, place):
    path = sharded / "trainer.pt"
    state = load_trainer_state(path)
    path.write_bytes(saved(attack if place == "top" else {**state, place: attack}))
    edit_manifest(sharded)
    recipe = tmp_path / "recipe.yaml"
    run = sharded.parents[1]
    shutil.copy(run / "config.yaml", recipe)
    assert main([str(recipe), f"run.directory={run}", "run.duration=4ba"]) == 2


def test_a_valid_sharded_checkpoint_is_read_and_resumed(sharded, tmp_path):
    edit_manifest(sharded)
    open_checkpoint(sharded).read("lm_head.weight")
    recipe = tmp_path / "recipe.yaml"
    run = sharded.parents[1]
    shutil.copy(run / "config.yaml", recipe)
    assert main([str(recipe), f"run.directory={run}", "run.duration=3ba"]) == 0


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_weights(tiny_model, tmp_path, attack, legacy, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    new = not legacy
    torch.save({"lm_head.weight": attack}, folder / name, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match="truncated or not a weight file"):
        load_model(read_source(folder))


def test_code_next_to_weights_and_tokenizer(tiny_model, tmp_path, attack):
    """Transformers imports the modules that `auto_map` names if it may trust remote code."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(attack.folder)!r})\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    load_model(read_source(folder))
    assert tokenizer_files.read(folder) == 128


def test_importance_masks_and_recipes(tiny_model, tmp_path, attack):
    table: CouplingTable = read_source(tiny_model).table
    for content in (pickle.dumps(attack), saved({"hidden": attack})):
        file = tmp_path / "masks/ba1.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        with pytest.raises(UserError, match="found no importance scores"):
            load_scores(file, table)
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(UserError, match="is not a whole safetensors file"):
            read_run(tmp_path)
    text = tmp_path / "recipe.yaml"
    text.write_text(f"run: !!python/object/apply:os.mkdir [{json.dumps(str(attack.folder))}]\n")
    with pytest.raises(UserError):
        load_recipe(text)
    with pytest.raises(UserError):
        References.read(text)


# What unpickles or imports code that a file names, and the argument that keeps it from doing so.
READERS = {
    "torch.load": "weights_only=True",
    "from_pretrained": "trust_remote_code=False",
    "from_config": "trust_remote_code=False",
    "np.load": "allow_pickle=False",
    "pickle.load": None,
    "pickle.loads": None,
}


def test_no_reader_was_added_that_unpickles_or_trusts_code():
    for path in sorted(Path(llmshearing.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            for reader, safe in READERS.items():
                if f".{name}".endswith(f".{reader}") and "GenerationConfig" not in name:
                    call = ast.unparse(node)
                    assert safe is not None, f"{path}: {call}"
                    assert safe in call, f"{path}: {call}"
