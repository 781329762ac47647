"""Commands as processes of their own: skipped, resumed, stopped and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing import files
from llmshearing.errors import UserError
from llmshearing.files import lock_directory
from llmshearing.quickstart import run as quickstart
from llmshearing.quickstart.steps import Step

ROOT = Path(__file__).parents[2]
SHORTER = ["run.eval_interval=4ba", "run.checkpoint_interval=4ba", "mixture.prefetch=1"]
EXTRA = {
    "gather": ["--characters", "400000"],
    "prepare": ["splits.eval.tokens_per_domain=2048"],
    **{
        name: [*SHORTER, f"run.duration={steps}ba"]
        for name, steps in {"source": 8, "prune": 8, "continue": 4, "scratch": 12}.items()
    },
}


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "TICK_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "out"
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def python(tmp_path):
    """Makes steps that run Python code; their output is there unless another one is given."""
    (tmp_path / "made").touch()

    def step(name, code, output=tmp_path / "made"):
        return Step(name, name, 1.0, output, ("python", "-c", code))

    return step


def done(out):
    return sorted(path.stem for path in (out / "done").iterdir())


def test_finished_steps_do_not_run_again(python, out, tmp_path):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    quickstart.run_steps([python("a", count)], out)
    quickstart.run_steps([python("a", count), python("b", count)], out)
    assert (tmp_path / "count").read_text() == "xx"
    assert done(out) == ["a", "b"]


def test_commands_run_with_this_python_and_leave_a_log(python, out):
    quickstart.run_steps([python("a", "import sys; print(sys.prefix)")], out)
    assert (out / "logs/a.log").read_text().strip() == sys.prefix


def test_the_time_and_memory_of_a_command_are_recorded(python, out):
    before = quickstart._used_bytes(psutil.Process()) / 1e9  # with other tests' processes
    quickstart.run_steps([python("a", "x = b'1' * 300_000_000; import time; time.sleep(1)")], out)
    found = json.loads((out / "done/a.json").read_text())
    assert 0.28 < found["peak_memory_gb"] - before < 0.5
    assert 1 < found["seconds"] < 10


def test_a_failure_shows_the_end_of_the_output(python, out):
    with pytest.raises(UserError, match=r"status 3(?s:.)*a\.log(?s:.)*too bad"):
        quickstart.run_steps([python("a", "import sys; print('too bad'); sys.exit(3)")], out)
    assert done(out) == []


def test_a_command_that_makes_nothing_has_failed(python, out, tmp_path):
    with pytest.raises(UserError, match=r"status 0 without .*nothing"):
        quickstart.run_steps([python("a", "1 + 1", tmp_path / "nothing")], out)
    assert done(out) == []


def test_what_a_stopped_attempt_left_is_removed_unless_it_can_be_resumed(python, out, tmp_path):
    for name, kept in (("export-source", False), ("source", True)):
        made = tmp_path / name
        made.mkdir()
        (made / "half").write_text("")
        code = f"import pathlib, sys; made = pathlib.Path({str(made)!r}); found = made.exists(); "
        code += f"made.mkdir(exist_ok=True); sys.exit(found != {kept})"
        quickstart.run_steps([python(name, code, made)], out)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        quickstart.run(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_steps_made_by_other_commands_are_refused(python, out):
    quickstart.run_steps([python("a", "1 + 1")], out)
    with pytest.raises(UserError, match=r"python -c 1 \+ 1(?s:.)*choose|Choose another --out"):
        quickstart.check_directory([python("a", "1 + 2")], out)
    quickstart.check_directory([python("a", "1 + 1")], out)


SCRIPT = """
import pathlib, sys
from llmshearing.quickstart.run import run_steps
from llmshearing.quickstart.steps import Step
out = pathlib.Path(sys.argv[1])
# As a launcher and its rank: the rank asks to end with its parent, and stops on SIGTERM.
rank = "import time; from llmshearing.processes import exit_with_parent; exit_with_parent(); "
rank += "print('up', flush=True); time.sleep(60)"
code = f'''
import subprocess, sys
rank = subprocess.Popen([sys.executable, '-c', {rank!r}])
try:
    rank.wait()
except KeyboardInterrupt:
    rank.terminate()
    print('rank ended with', rank.wait())
'''
run_steps([Step("a", "a", 1.0, out / "made", ("python", "-c", code))], out)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_and_its_children_end_with_the_quickstart(tmp_path, number):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "logs/a.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(number)
    assert process.wait(30) != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    stopped = f"rank ended with -{signal.SIGTERM.value}" in log.read_text()
    assert stopped == (number != signal.SIGKILL)  # otherwise a launcher gets time to stop its ranks


def test_one_quickstart_per_directory_and_none_of_its_processes_outlives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.1)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "llmshearing.cli", "quickstart", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        process, deadline = psutil.Process(first.pid), time.monotonic() + 60
        while not process.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        children = process.children(recursive=True)
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            quickstart.run(out)
        first.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children
    assert not alive
    with lock_directory(out):
        pass


def test_the_process_that_watches_stays_small():
    code = "import sys, llmshearing.quickstart.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def installed(tmp_path):
    """The Python of a new environment in which a wheel of this tree is installed."""
    tree = tmp_path / "tree"
    for path in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if path.startswith(
            ("llmshearing/", "yamls/", "setup.py", "pyproject", "README", "LICENSE")
        ):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path, follow_symlinks=False)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    packages = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    # The dependencies. Python ignores .pth files in there, such as that of an editable install.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, tree], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_installed_quickstart_completes_in_an_empty_folder_and_is_not_repeated(
    installed, tmp_path
):
    code = "import json, pathlib, sys; from llmshearing.quickstart.run import run; "
    code += "run(pathlib.Path('out'), json.loads(sys.argv[1]))"
    folder, out = tmp_path / "folder", tmp_path / "folder/out"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def quickstart():
        command = [installed, "-c", code, json.dumps(EXTRA)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    assert "report.html" in quickstart().stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tokens"]["scratch"] == (
        summary["tokens"]["prune"] + summary["tokens"]["continue"]
    )
    assert 0 < summary["peak_memory_gb"] < 4
    sheared = AutoModelForCausalLM.from_pretrained(out / "models/sheared")
    assert summary["sheared_parameters"] == sheared.num_parameters()
    assert summary["sheared_parameters"] == summary["scratch_parameters"]
    assert AutoTokenizer.from_pretrained(out / "models/sheared").encode("def") != []
    for name in ("source", "pruned", "sheared", "scratch"):
        assert 0 < summary[f"{name}_loss"] < 10
    assert "<svg" in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.safetensors")}
    assert "$ composer" not in quickstart().stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_part_of_a_step_that_is_done(tmp_path):
    log = tmp_path / "log"
    log.write_text("no training yet\n")
    other, training = (Step("x", "x", 40.0, tmp_path, (word,)) for word in ("prepare", "composer"))
    assert quickstart._part_done(other, log, 10.0) == (0.25, "")
    assert quickstart._part_done(other, log, 100.0) == (0.99, "")
    assert quickstart._part_done(training, log, 10.0) == (0.0, "")
    log.write_text("".join(f"step {n}/4  ce {5 - n}.25  7 tokens/s\n" for n in (1, 2, 3)))
    assert quickstart._part_done(training, log, 10.0) == (0.75, "step 3/4, ce 2.25")
