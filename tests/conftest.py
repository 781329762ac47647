"""Fixtures that many tests share."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported, here and in the processes of the tests: on models of a few thousand
# parameters a second thread only waits for the first, for longer than the work takes.
os.environ["OMP_NUM_THREADS"] = "1"

# Before huggingface_hub is imported: its hub is on this machine, where nothing listens unless a
# test starts a server (fixture `hub`), and its cache and token are the tests' own.
with socket.create_server(("127.0.0.1", 0)) as free:
    HUB_ADDRESS = free.getsockname()
HF_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "HF_ENDPOINT": "http://{}:{}".format(*HUB_ADDRESS),
    "HF_HOME": HF_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

# A loaded machine may take long over one example; the limit of the whole test is in pyproject.toml.
hypothesis.settings.register_profile("llmshearing", deadline=None)
hypothesis.settings.load_profile("llmshearing")

SLOW_TIMEOUT = 3600  # seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests, which train or build environments, more time than pyproject.toml does."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real text, a tokenizer and a small trained model."""
    folder = Path(os.environ.get("LLMSHEARING_SHARED", "../shared"))
    if not folder.is_absolute():
        folder = Path(__file__).parents[1] / folder
    if not folder.is_dir():
        pytest.skip(f"no real input at {folder}: set LLMSHEARING_SHARED to a folder that holds it")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub without repositories, and an empty cache."""
    from hub_server import Hub, serve
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    hub = Hub()
    server = serve(hub, HUB_ADDRESS)
    yield hub
    server.shutdown()
    server.server_close()


ROOT = Path(__file__).parents[1]
DOMAINS = {"prose": "stone river light", "code": "def return import", "letters": "dear sir yours"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random LLaMA of 3 layers with a SentencePiece tokenizer, as a Hugging Face directory."""
    import sentencepiece
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    text = folder / "text.txt"
    text.write_text("\n".join(document(name, i) for name in DOMAINS for i in range(60)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=128,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=2,
        num_threads=1,
    )
    text.unlink()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data_recipe(tmp_path_factory, tiny_model) -> Path:
    """Text of three domains, one folder each, and a recipe to prepare rows of 32 tokens."""
    raw = tmp_path_factory.mktemp("raw")
    for name in DOMAINS:
        (raw / name).mkdir()
        lines = (json.dumps({"text": document(name, i)}) for i in range(150))
        (raw / name / "train.jsonl").write_text("\n".join(lines) + "\n")
    config = raw / "config.yaml"
    rules = {"eval": {"share": 0.1}, "prune": {"share": 0.5}, "continue": {"share": 1.0}}
    settings = {
        "source": str(raw),
        "tokenizer": str(tiny_model),
        "sequence_length": 32,
        "domains": {name: {} for name in DOMAINS},
        "splits": rules,
        "processes": 1,
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    return config


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory, tiny_data_recipe) -> Path:
    """A data tree made of it by the real preparation."""
    root = tmp_path_factory.mktemp("tree") / "data"
    prepare = str(ROOT / "data_prep" / "prepare.py")
    command = [sys.executable, prepare, str(tiny_data_recipe), f"output={root}"]
    subprocess.run(command, check=True, capture_output=True)
    return root


def document(domain: str, number: int) -> str:
    """Some words of a domain, the same for the same number."""
    words = [*DOMAINS[domain].split(), *DOMAINS["prose"].split()]
    draw = random.Random(f"{domain}-{number}")
    return " ".join(draw.choice(words) + str(draw.randrange(30)) for _ in range(40))


@pytest.fixture(scope="session")
def recipe_file_at(tiny_model, tiny_tree) -> Callable[[Path], Path]:
    """Writes a pruning recipe of a few steps on the tiny model, next to a run directory."""

    def write(run: Path) -> Path:
        recipe = {
            "run": {
                "directory": str(run),
                "duration": "8ba",
                "eval_interval": "4ba",
                "checkpoint_interval": "4ba",
                "log_interval": "1ba",
            },
            "model": {"path": str(tiny_model)},
            "target": {"hidden": 16, "layers": 2, "heads": 2, "intermediate": 24},
            "data": {
                "root": str(tiny_tree),
                "split": "prune",
                "global_batch": 8,
                "microbatch": 4,
                "workers": 0,
            },
            "optimizer": {"learning_rate": 0.001},
            "parallelism": "ddp",
        }
        path = run.with_name("recipe.yaml")
        path.write_text(json.dumps(recipe))
        return path

    return write


@pytest.fixture
def recipe_file(tmp_path, recipe_file_at) -> Path:
    """That recipe, for a run below the test's own folder; a second is enough for a run."""
    return recipe_file_at(tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_model, tiny_tree) -> Path:
    """A pruning run of two steps; its last held-out loss is that of the exact target shape."""
    return finish(tmp_path_factory.mktemp("finished"), tiny_model, tiny_tree)


@pytest.fixture(scope="session")
def finished_sharded_run(tmp_path_factory, tiny_model, tiny_tree) -> Path:
    """The same with a sharded checkpoint."""
    return finish(tmp_path_factory.mktemp("sharded"), tiny_model, tiny_tree, "sharded")


def finish(folder: Path, tiny_model: Path, tiny_tree: Path, kind: str = "full") -> Path:
    recipe = {
        "run": {
            "directory": str(folder / "run"),
            "duration": "2ba",
            "eval_interval": "2ba",
            "checkpoint_interval": "2ba",
            "checkpoint": kind,
        },
        "model": {"path": str(tiny_model)},
        "target": {"hidden": 16, "layers": 2, "heads": 2, "intermediate": 24},
        "optimizer": {"learning_rate": 0.001},
        "pruning": {"warmup": "1ba", "freeze": "1dur", "sharpness": 1.0},
        "data": {
            "root": str(tiny_tree),
            "split": "prune",
            "global_batch": 4,
            "microbatch": 4,
            "workers": 0,
        },
        "parallelism": "ddp",
    }
    path = folder / "recipe.yaml"
    from runs import run_here

    path.write_text(json.dumps(recipe))
    run_here(path)
    return folder / "run"


@pytest.fixture(scope="session")
def teacher_cache(tmp_path_factory, recipe_file_at) -> Path:
    """A sample of the tiny model's distributions on the rows that recipes train on."""
    folder = tmp_path_factory.mktemp("teacher-cache")
    from runs import with_teacher

    from llmshearing.caching import CacheSettings, make_cache

    recipe = with_teacher(recipe_file_at(folder / "run"))

    make_cache(recipe, (), folder / "cache", CacheSettings(places=16))
    return folder / "cache"


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
