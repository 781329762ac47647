"""Runs the steps in order; a file for each finished step lets a second attempt skip it.

This process only starts commands and watches them, so it imports neither torch nor Transformers.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from llmshearing.errors import UserError
from llmshearing.files import LOCK, lock_directory, read_json, write_json
from llmshearing.processes import exit_with_parent
from llmshearing.progress import CONSOLE, Progress
from llmshearing.quickstart.results import write_results
from llmshearing.quickstart.steps import RESUMABLE, Step, steps

TICK_SECONDS = 0.5
GRACE_SECONDS = 40.0  # composer's launcher gives its ranks 30
TAIL_LINES, TAIL_BYTES = 15, 20_000
TRAINING_STEP = re.compile(r"step (\d+)/(\d+)  (ce \d+\.\d+)")
MODULES = {"composer": ("-m", "composer.cli"), "llmshearing": ("-m", "llmshearing.cli")}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    **os.environ,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",  # a random.py in the user's folder must not hide the library's
}


def run(out: Path, extra: Mapping[str, Sequence[str]] | None = None) -> None:
    """Run the quickstart, or what is left of it, in `out`; `extra` as in `steps`.

    Raises:
        UserError: `out` holds something else or is in use, or a command failed.
    """
    todo = steps(out, extra)
    check_directory(todo, out)
    with lock_directory(out):
        run_steps(todo, out)
        write_results(out)


def check_directory(todo: Sequence[Step], out: Path) -> None:
    """Raise a `UserError` if `out` holds something else, or steps that other commands made."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names - {LOCK} and "done" not in names:
        raise UserError(
            f"{out} holds other files, expected a new directory or one of an earlier quickstart: "
            "choose another --out"
        )
    for step in todo:
        done = _done(out, step)
        made_by = read_json(done)["command"] if done.is_file() else str(step)
        if made_by != str(step):
            raise UserError(
                f"{step.output} was made by\n  {made_by}\nexpected\n  {step}\n"
                f"Choose another --out, or remove {out} to start again"
            )


def run_steps(todo: Sequence[Step], out: Path) -> None:
    """Run the steps that are not done yet; a UserError holds the end of a failed one's output."""
    # An exception also stops the running command.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    for name in ("done", "logs"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with Progress("", sum(step.seconds for step in todo), seconds_between_lines=20) as progress:
        for number, step in enumerate(todo):
            planned = sum(step.seconds for step in todo[:number])
            if _done(out, step).is_file():
                CONSOLE.out(f"already done: {step.title}")
                progress.first = planned + step.seconds
                continue
            if step.name not in RESUMABLE:
                shutil.rmtree(step.output, ignore_errors=True)  # files are overwritten
            CONSOLE.out(f"$ {step}")
            progress.title = f"[{number + 1}/{len(todo)}] {step.title}"
            started = time.monotonic()
            peak = _execute(step, out / "logs" / f"{step.name}.log", progress, planned)
            seconds = round(time.monotonic() - started, 1)
            made = {"command": str(step), "seconds": seconds}
            write_json(_done(out, step), {**made, "peak_memory_gb": round(peak / 1e9, 3)})
        progress.update(progress.total, title="quickstart", detail="")


def _execute(step: Step, log: Path, progress: Progress, planned: float) -> int:
    """Run a command to its end and return the peak memory in bytes.

    The command ends with this process: it gets time to stop if this one is interrupted, and is
    killed if this one is killed.
    """
    program, *words = step.command
    peak, started = 0, time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *MODULES.get(program, ()), *words],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_before_exec,  # noqa: PLW1509 - this process has no threads
        ) as process,
    ):
        try:
            while process.poll() is None:
                peak = max(peak, _used_bytes(psutil.Process()))
                part, detail = _part_done(step, log, time.monotonic() - started)
                progress.update(planned + part * step.seconds, detail=detail)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TICK_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGINT)  # a launcher has its ranks write a checkpoint
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
            raise
    if process.returncode or not step.output.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
        made = "" if step.output.exists() else f" without {step.output}"
        raise UserError(
            f"`{step}` ended with status {process.returncode}{made}. The end of "
            f"its log ({log}):\n{tail}\n"
            "Fix the cause and run the quickstart again: finished steps are kept."
        )
    return peak


def _before_exec() -> None:
    exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it in background jobs


def _part_done(step: Step, log: Path, elapsed: float) -> tuple[float, str]:
    """The fraction of a step that is done and, of a training, its step and loss."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        found = TRAINING_STEP.findall(file.read().decode("utf-8", errors="replace"))
    if not found:
        starting = step.command[0] == "composer"
        return 0.0 if starting else min(elapsed / step.seconds, 0.99), ""
    done, total, loss = found[-1]
    return int(done) / int(total), f"step {done}/{total}, {loss}"


def _used_bytes(process: psutil.Process) -> int:
    """Memory of a process and its descendants: what each has of its own, and what they share.

    The proportional set size would be exact, but reading it stalls the processes.
    """
    found = []
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            found.append(member.memory_info())
    shared = [getattr(memory, "shared", 0) for memory in found]  # on Linux only
    return sum(memory.rss for memory in found) - sum(shared) + max(shared)


def _done(out: Path, step: Step) -> Path:
    return out / "done" / f"{step.name}.json"
