"""Exported models in llama.cpp: converted by its script, run by its library.

The script is not on the package index by itself, but in llama-cpp-python's source distribution;
`setup.sh` in this folder installs the one and unpacks the other.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: run `make interop`"
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


CONVERTER = Path(__file__).parents[2] / "build/interop/llama.cpp/convert_hf_to_gguf.py"


@pytest.fixture(scope="session")
def converter() -> Path:
    if not CONVERTER.is_file():
        pytest.skip("llama.cpp's source is not there: run `make interop`")
    return CONVERTER


def converted(converter: Path, model: Path, out: Path) -> Path:
    command = [sys.executable, str(converter), str(model), "--outfile", str(out)]
    done = subprocess.run([*command, "--outtype", "f32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def next_tokens(file: Path, prompt: list[int], steps: int) -> list[int]:
    model = llama_cpp.Llama(
        model_path=str(file),
        n_ctx=128,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    found = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
    tokens = [next(found) for _ in range(steps)]
    model.close()
    return tokens


def test_converted_models_generate_the_same_tokens(converter, exported, greedy, tmp_path):
    prompt, expected = greedy
    file = converted(converter, exported, tmp_path / "model.gguf")
    assert next_tokens(file, prompt, len(expected)) == expected


def test_a_model_with_only_a_fast_tokenizer_converts(converter, exported, greedy, tmp_path):
    """Without `tokenizer.model` the converter reads `tokenizer.json`."""
    if "qwen2" in (exported / "config.json").read_text():
        pytest.skip("its converter knows fast tokenizers of published models only, by their hash")
    folder = shutil.copytree(exported, tmp_path / "fast")
    (folder / "tokenizer.model").unlink()
    prompt, expected = greedy
    file = converted(converter, folder, tmp_path / "model.gguf")
    assert next_tokens(file, prompt, len(expected)) == expected
