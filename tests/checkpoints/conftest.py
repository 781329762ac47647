"""A finished run of a few steps, for tests of what is done with runs."""

import json
import shutil
from pathlib import Path

import pytest
from runs import run_here


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
        "pruning": {"warmup": "1ba", "settle": "1dur", "sharpness": 1.0},
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
    path.write_text(json.dumps(recipe))
    run_here(path)
    return folder / "run"


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
