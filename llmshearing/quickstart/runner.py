"""Runs the stages: each command as a process of its own, shown, logged, timed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console

from llmshearing.errors import UserError
from llmshearing.quickstart.memory import MemoryWatch
from llmshearing.quickstart.progress import PathProgress
from llmshearing.quickstart.record import Record
from llmshearing.quickstart.stages import Stage

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
GRACE_SECONDS = 30.0
TAIL_LINES = 15
GUARD = Path(__file__).with_name("guard.py")


def run_stages(
    stages: Sequence[Stage], record: Record, logs: Path, project: Path, console: Console
) -> None:
    """Run what is not done yet.

    Args:
        stages: in order.
        record: of what is done.
        logs: where each command's output goes.
        project: where commands run.
        console: where progress goes.

    Raises:
        UserError: a command failed; the message holds the end of its output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)
    with PathProgress(stages, console) as progress:
        for number, stage in enumerate(stages, 1):
            if record.is_done(stage):
                progress.skip(stage)
                console.out(f"done before: {stage.title}", highlight=False)
                continue
            record.begin(stage, stages[number:])
            if stage.command:
                console.out(f"$ {' '.join(stage.command)}", style="bold", highlight=False)
            started = time.monotonic()
            progress.begin(stage)
            with MemoryWatch() as memory:
                if stage.call is not None:
                    _call(stage, progress)
                else:
                    _execute(stage, progress, logs / f"{stage.name}.log", project)
            progress.end(stage)
            record.end(stage, time.monotonic() - started, memory.peak_gb)


def _stop(number: int, frame: object) -> None:
    """End as by an exception, so that the running command ends too."""
    del frame
    raise SystemExit(128 + number)


def _call(stage: Stage, progress: PathProgress) -> None:
    """Call while the progress goes on."""
    assert stage.call is not None
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            progress.tick(stage)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        stage.call()
    finally:
        over.set()
        thread.join()


def _execute(stage: Stage, progress: PathProgress, log_file: Path, project: Path) -> None:
    """Run a command to its end; when interrupted, it ends with all that it started."""
    environment = environment_of(os.environ)
    executable = shutil.which(stage.command[0], path=environment["PATH"])
    if executable is None:
        raise UserError(
            f"found no command {stage.command[0]} beside {sys.executable}, expected the project's "
            "environment: run `make env`, then .venv/bin/llmshearing quickstart"
        )
    with (
        log_file.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), executable, *stage.command[1:]],
            cwd=project,
            env=environment,
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress.tick(stage)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TICK_SECONDS)
        except BaseException:
            # Ranks outlive their launcher here: they write a checkpoint before they stop.
            started = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
            psutil.wait_procs(started, timeout=GRACE_SECONDS)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
        raise UserError(
            f"`{' '.join(stage.command)}` ended with status {process.returncode}; "
            f"{log_file} holds its output, which ends:\n{tail}\n"
            "Mend the cause and run the same command again: what is finished is kept."
        )


def environment_of(given: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The environment of commands: this Python's own programs first, a thread a process."""
    return {
        **given,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}",
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
