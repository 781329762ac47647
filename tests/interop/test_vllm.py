"""vLLM reads the config of an export of every family and loads its weights, on a processor.

It asks for versions of its own, so it runs under the interpreter in LLMSHEARING_VLLM_PYTHON.
"""

import json
import os
import subprocess

import pytest
from models_zoo import ZOO, Variant, build

from llmshearing.architecture.target import TargetSettings
from llmshearing.export.oneshot import prune_oneshot, scorer

PYTHON = os.environ.get("LLMSHEARING_VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="set LLMSHEARING_VLLM_PYTHON to a Python with vLLM"),
]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_attention_heads": 4,
}
PROGRAM = """
import json, sys
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
vllm.platforms._current_platform = CpuPlatform()  # its wheels for GPUs find no platform here
from vllm.config import DeviceConfig, LoadConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
folder, store = sys.argv[1:]
model_config = EngineArgs(model=folder, dtype="float32", enforce_eager=True).create_model_config()
config = VllmConfig(model_config=model_config, device_config=DeviceConfig("cpu"))
with set_current_vllm_config(config):
    init_distributed_environment(1, 0, f"file://{store}", 0, backend="gloo")
    initialize_model_parallel(1, 1)
    model = initialize_model(vllm_config=config)
    DefaultModelLoader(LoadConfig()).load_weights(model, model_config)
parameters = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps([model_config.architecture, parameters]))
"""


@pytest.mark.parametrize("family", ZOO)
def test_it_loads_every_weight_of_an_export(family, tmp_path):
    kind = next(iter(ZOO[family].kinds.values()))
    fields = {**kind, **SIZES, "tie_word_embeddings": False}
    fields |= {"head_dim": 64} if "head_dim" in kind else {}
    model, table = build(Variant(family, family, fields))
    model.save_pretrained(tmp_path / "source")
    target = TargetSettings(layers=table.source.layers - 1, intermediate=64)
    exported = prune_oneshot(
        tmp_path / "source", tmp_path / "out", target, scorer("magnitude"), method="magnitude"
    )
    done = subprocess.run(
        [PYTHON, "-c", PROGRAM, str(tmp_path / "out"), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == [
        config["architectures"][0],
        exported.parameters,
    ]
