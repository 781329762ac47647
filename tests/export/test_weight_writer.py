"""Weight files: what lies in a file as it is, is copied there; anything else is written."""

import pytest
import torch
from safetensors.torch import load_file

from llmshearing.export.mapped import MAPPINGS, place_of
from llmshearing.export.weight_writer import IN_KERNEL_BYTES, Flusher, write_weights

ROWS = 3 * IN_KERNEL_BYTES // 1024  # of 256 floats


@pytest.fixture
def mapped(tmp_path):
    """Tensors of a mapped file with blanks in its name."""
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "a check point"
    state = {name: torch.randn(ROWS, 256, generator=generator) for name in ("first", "second")}
    torch.save(state, file)
    return file, torch.load(file, mmap=True, weights_only=True)


@pytest.mark.skipif(not MAPPINGS.exists(), reason="only Linux tells what a process has mapped")
def test_the_place_of_a_view_holds_its_bytes(mapped):
    file, tensors = mapped
    for tensor in (tensors["first"], tensors["second"], tensors["second"][5:77]):
        place = place_of(tensor)
        assert place is not None
        path, offset = place
        content = tensor.flatten().view(torch.uint8).numpy().tobytes()
        assert path == file
        assert file.read_bytes()[offset : offset + len(content)] == content


def test_what_is_in_memory_or_whose_file_is_gone_has_no_place(mapped):
    file, tensors = mapped
    assert place_of(tensors["first"].clone()) is None
    file.unlink()
    assert place_of(tensors["first"]) is None
    file.write_bytes(b"another file")
    assert place_of(tensors["first"]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copied_and_written_tensors_come_back(mapped, tmp_path, dtype):
    _, stored = mapped
    tensors = {
        "whole": stored["first"],
        "rows": stored["second"][3:-3],
        "columns": stored["second"][:, 1::2],
        "made": stored["first"] * 2,
        "small": stored["first"][0],
    }
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with Flusher() as flusher:
        write_weights(tmp_path, sizes, tensors.items(), dtype, "5GB", flusher)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor.to(dtype)), name
