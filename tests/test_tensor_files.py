"""Scores and masks in files: what is read is what was written."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmshearing.errors import UserError
from llmshearing.tensor_files import read_tensors, write_tensors

TENSORS = {
    "head": np.arange(6, dtype=np.float32).reshape(2, 3),
    "head.kept": np.array([[0, 2], [1, 2]]),
}


def test_what_is_written_is_read(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"model": "m"})
    found = read_tensors(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_equal_content_is_equal_bytes(tmp_path):
    for attempt in range(20):
        write_tensors(tmp_path / f"file{attempt}", TENSORS, {"model": "m", "rows": "8"})
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_every_flipped_bit_is_noticed(tmp_path):
    file, damaged = tmp_path / "file", tmp_path / "damaged"
    write_tensors(file, TENSORS, {"model": "m"})
    content = file.read_bytes()
    for position in range(8 * len(content)):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        damaged.write_bytes(changed)
        with pytest.raises(UserError, match="damaged"):
            read_tensors(damaged)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, size):
    write_tensors(tmp_path / "file", TENSORS)
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:size])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read_tensors(tmp_path / "file")


def test_a_file_from_before_checksums_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "file", {"model": "m"})
    assert read_tensors(tmp_path / "file").keys() == TENSORS.keys()
    with pytest.raises(UserError, match="No such file"):
        read_tensors(tmp_path / "nowhere")
