"""Random sizes of every variant: gated = exported, and either Transformers reads what is written.

LLMSHEARING_OTHER_PYTHON names an interpreter with the other version of Transformers; without it the
tests that need one are skipped.
"""

import os
import random
import subprocess

import pytest
import torch
import transformers
from equivalence import Specimen, check_gated_equals_exported, subsets, target_shape
from models_zoo import build, random_variant
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmshearing.architecture.target import SIZES, TargetSettings
from llmshearing.export.oneshot import prune_oneshot, scorer
from llmshearing.huggingface.source import load_model, read_source

TOKENS = torch.arange(22).reshape(2, 11)
FEW, ALL = range(12), range(200)

# Loads each export strictly, keeps its logits, and saves it again in its own form.
OTHER = """
import sys, torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
assert transformers.__version__.split(".")[0] != sys.argv[1], "the same version of Transformers"
for folder in sys.argv[2:]:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), (folder, report)
    with torch.no_grad():
        logits = model.eval()(torch.arange(22).reshape(2, 11)).logits
    model.save_pretrained(folder + "/saved")
    save_file({"logits": logits}, folder + "/saved/logits")
"""


@pytest.fixture(scope="session")
def other_python():
    """The interpreter of the other stack."""
    python = os.environ.get("LLMSHEARING_OTHER_PYTHON")
    if not python:
        pytest.skip("set LLMSHEARING_OTHER_PYTHON to a Python with the other Transformers version")
    return python


def check_gated(seed):
    specimen = Specimen(random_variant(seed))
    axes = random.Random(seed).choice(list(subsets(specimen.table)))
    for hard in (False, True):
        check_gated_equals_exported(specimen, specimen.table, axes, hard=hard)


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def pruned(seed, folder):
    """A cut model; the product loads it and its source as Transformers does."""
    model, table = build(random_variant(seed), seed)
    model.save_pretrained(folder / "source")
    axes = random.Random(seed).choice(list(subsets(table)))
    shape = target_shape(table, axes)
    target = TargetSettings(**{name: getattr(shape, name) for name in SIZES})
    prune_oneshot(folder / "source", folder / "pruned", target, scorer("random"), method="random")
    for directory in (folder / "source", folder / "pruned"):
        stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        assert torch.equal(logits(load_model(read_source(directory))), logits(stock)), directory
    return folder / "pruned"


def check_other(seeds, folder, other_python):
    """The other version loads exports with equal logits; the product loads what that one saves."""
    # Transformers 4 does not have this family.
    seeds = [seed for seed in seeds if random_variant(seed).family != "ministral3"]
    directories = [pruned(seed, folder / str(seed)) for seed in seeds]
    version = transformers.__version__.split(".")[0]
    command = [other_python, "-c", OTHER, version, *map(str, directories)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for directory in directories:
        expected = logits(load_model(read_source(directory)))
        bound = 1e-5 * max(1.0, expected.abs().max().item())
        found = load_file(directory / "saved/logits")["logits"]
        assert (found - expected).abs().max() <= bound, directory
        again = logits(load_model(read_source(directory / "saved")))
        assert (again - expected).abs().max() <= bound, directory


@pytest.mark.parametrize("seed", FEW)
def test_gated_equals_exported_for_random_sizes(seed):
    check_gated(seed)


@pytest.mark.parametrize("seed", FEW)
def test_random_sizes_load_as_in_transformers(seed, tmp_path):
    pruned(seed, tmp_path)


def test_the_other_version_of_transformers_reads_what_this_one_writes(other_python, tmp_path):
    check_other(FEW, tmp_path, other_python)


@pytest.mark.slow
def test_gated_equals_exported_for_200_random_configs():
    for seed in ALL:
        check_gated(seed)


@pytest.mark.slow
def test_200_random_configs_load_as_in_transformers_and_in_its_other_version(
    other_python, tmp_path
):
    check_other(ALL, tmp_path, other_python)
