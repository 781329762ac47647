"""An error of the operating system ends a command with one message and no traceback."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from composer.core import Callback

from llmshearing import preflight
from llmshearing.errors import RUN_ERROR_STATUS, USER_ERROR_STATUS, exits_on_user_error
from llmshearing.train import build_trainer

COMMAND = """
import resource, sys
from llmshearing.errors import exits_on_user_error
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
@exits_on_user_error
def main():
    files = []
    while True:
        files.append(open({path!r}, "rb"))
        files[-1].read(1)
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/dev/null", USER_ERROR_STATUS, "/dev/null: Too many open files. Raise the limit"),
        ("/proc/self/mem", RUN_ERROR_STATUS, "Input/output error. Check the disk"),
        ("/nowhere/file", RUN_ERROR_STATUS, "/nowhere/file: No such file or directory. Something"),
    ],
    ids=["EMFILE", "EIO", "ENOENT"],
)
def test_a_system_error_is_one_message_with_its_remedy(path, status, told):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(path=path)], capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


class Remover(Callback):
    """Removes the run directory in the third step."""

    def batch_start(self, state, logger):
        if state.timestamp.batch.value == 2:
            shutil.rmtree(self.directory)


@pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours
def test_a_run_directory_that_disappears_ends_the_run_with_one_message(recipe_file, capsys):
    recipe, inputs = preflight.resolve(recipe_file)
    remover = Remover()
    remover.directory = Path(recipe.run.directory)

    @exits_on_user_error
    def main():
        build_trainer(recipe, inputs, extra_callbacks=[remover]).fit()

    assert main() == RUN_ERROR_STATUS
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert str(remover.directory) in told[0]
