"""Two processes with the same work refuse each other; tasks of different shards do not."""

import subprocess
import sys

import pytest
from corpus import prepare

from llmshearing import files
from llmshearing.preparation.prepare import _locked
from llmshearing.preparation.recipe import PreparationRecipe
from llmshearing.preparation.work_plan import make
from llmshearing.typed_yaml import load

OWNER = """
import sys
from llmshearing.preparation.prepare import _locked
from llmshearing.preparation.recipe import PreparationRecipe
from llmshearing.preparation.work_plan import make
from llmshearing.typed_yaml import load
shard = tuple(map(int, sys.argv[2].split("/"))) if sys.argv[2] else None
with _locked(make(load(PreparationRecipe, sys.argv[1], [])), shard):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owned(config):
    """Start a process that owns the work of a shard, or all of it."""
    started = []

    def own(shard):
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(config), shard],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield own
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    ("first", "second"),
    [("1/4", "--shard=1/4"), ("0/4", "--shard=4/4"), ("1/4", ""), ("1/4", "--merge"), ("", ""),
     ("", "--shard=1/4"), ("", "--merge")],
)  # fmt: skip
def test_the_same_work_is_refused(config, owned, monkeypatch, capsys, first, second):
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    process = owned(first)
    assert prepare(config, *second.split()) == 2
    told = capsys.readouterr().err
    assert f"is in use by process {process.pid} on " in told
    assert "Traceback" not in told


def test_tasks_of_different_shards_share_a_folder(config, owned, tmp_path):
    owned("1/4")
    owned("2/4")
    assert prepare(config, "--shard=3/4") == 0
    with _locked(make(load(PreparationRecipe, str(config), [])), (0, 4)):
        pass


def test_a_killed_owner_blocks_nobody(config, owned):
    process = owned("")
    process.kill()
    process.wait()
    assert prepare(config) == 0
