"""Loading by ranks that shard a model: the same weights, in the memory of one copy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models_zoo import build, variants

ROOT = Path(__file__).parents[2]

# 37 ids and 20 intermediate units on 2 ranks; a tied output head; uneven rows and shared ones.
CHECK = """
import sys
import torch
from composer.core.precision import Precision
from composer.distributed.prepare_distributed import parallelize_composer_model
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from llmshearing import substrate
from llmshearing.huggingface.source import empty_model, fill, load_model, read_source
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.models.shearing import ShearingModel

dist.initialize_dist(get_device("cpu"))
for folder in sys.argv[1:]:
    source = read_source(folder)
    weights = WeightFiles(source.path)
    decoder = empty_model(source, weights)
    substrate.fill_when_sharded(decoder, lambda: fill(decoder, weights, substrate.local_rows))
    model = ShearingModel(decoder, None, domains=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parallelize_composer_model(model, optimizer, FSDP2Config(), Precision.FP32)
    expected = load_model(source)
    for name, parameter in expected.named_parameters():
        found = decoder.get_parameter(name)
        assert found.to_local().numel() < parameter.numel(), name
        assert torch.equal(found.full_tensor(), parameter), name
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }
    tokens = torch.arange(16).reshape(2, 8)
    logits = decoder(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected(tokens).logits, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_two_ranks_hold_the_weights_that_one_loads(tmp_path):
    folders = []
    for variant in (v for v in variants() if v.name in ("llama-gqa-tied", "gpt_neox-mha-untied")):
        model, _ = build(variant)
        model.save_pretrained(tmp_path / variant.name, max_shard_size="20KB")
        folders.append(str(tmp_path / variant.name))
    assert len(folders) == 2
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    composer = str(Path(sys.executable).with_name("composer"))
    done = subprocess.run(
        [composer, "-n", "2", str(script), *folders],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "equal" in done.stdout


@pytest.mark.slow
@pytest.mark.world_size(2)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc to measure by")
def test_a_node_holds_one_copy_while_it_loads():
    benchmark = ROOT / "benchmarks" / "loading_memory.py"
    command = [sys.executable, str(benchmark), "--megabytes", "400", "--ranks", "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["ranks"] for line in found] == [1, 2]
    for line in found:
        assert 0.9 < line["ratio"] < 1.3
