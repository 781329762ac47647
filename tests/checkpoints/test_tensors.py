"""Both kinds of checkpoint read the same, tensor by tensor."""

import pytest
import torch
from checkpoint_files import write_manifest
from manifests import run_manifest
from torch.distributed import checkpoint as dcp

from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]
STATE = {
    "model.model.embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
    "model.lm_head.weight": torch.arange(8).reshape(4, 2).bfloat16(),
    "masks.log_alpha.head": torch.linspace(-1, 1, 6).reshape(3, 2),
}
NAMES = ["lm_head.weight", "masks.log_alpha.head", "model.embed_tokens.weight"]


def save(folder, kind):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "full":
        path = folder / "ba4.pt"
        torch.save({"state": {"model": STATE}}, path)
    else:
        path = folder / "ba4"
        writer = dcp.FileSystemWriter(path)
        dcp.save({"model": STATE, "optimizer": {"x": torch.ones(3)}}, storage_writer=writer)
    write_manifest(path, run_manifest(batch=4))
    return path


@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("from_run", [True, False])
def test_both_kinds_read_alike(tmp_path, kind, from_run):
    path = save(tmp_path / "checkpoints", kind)
    checkpoint = open_checkpoint(tmp_path if from_run else path)
    assert checkpoint.names() == NAMES
    assert checkpoint.manifest.batch == 4
    for key, expected in STATE.items():
        name = key.removeprefix("model.")
        assert checkpoint.shape(name) == tuple(expected.shape)
        assert checkpoint.dtype(name) == expected.dtype
        assert torch.equal(checkpoint.read(name), expected)


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_without_its_manifest_a_checkpoint_is_none(tmp_path, kind):
    path = save(tmp_path / "checkpoints", kind)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="found no checkpoint in"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"found no ba4.json next to .*interrupted"):
        open_checkpoint(path)


def test_a_missing_shard_is_named(tmp_path):
    shard = save(tmp_path, "sharded") / "__0_0.distcp"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(
        UserError, match=rf"{shard} is missing; ba4.json records {len(content)} bytes"
    ):
        open_checkpoint(tmp_path / "ba4")
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{shard} has {len(content) - 1} bytes; ba4.json records"):
        open_checkpoint(tmp_path / "ba4")
