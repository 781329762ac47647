"""Weights & Biases beside the run's own files, where a recipe names a project."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmshearing.config import RunSettings
from llmshearing.errors import UserError

if TYPE_CHECKING:
    from composer.loggers import LoggerDestination


def problems(run: RunSettings) -> list[str]:
    """What stands in the way of tracking; empty where none is asked for."""
    if run.wandb is None or importlib.util.find_spec("wandb"):
        return []
    return [
        f"run.wandb: found the project {run.wandb} but no package wandb: install it with "
        "`pip install 'llmshearing[wandb]'`, or leave run.wandb out"
    ]


def loggers(run: RunSettings) -> list[LoggerDestination]:
    """Composer's logger for the project; a run that is resumed goes on as the same one there."""
    if run.wandb is None:
        return []
    from composer.loggers import WandBLogger

    directory = Path(run.directory)
    directory.mkdir(parents=True, exist_ok=True)
    name = directory.resolve().name
    settings = {"dir": str(directory), "id": name, "resume": "allow"}
    return [WandBLogger(project=run.wandb, name=name, init_kwargs=settings)]


@contextmanager
def failures_explained(run: RunSettings) -> Iterator[None]:
    """Turn what wandb says at its start, such as a missing key, into a message."""
    if run.wandb is None:
        yield
        return
    import wandb

    try:
        yield
    except wandb.Error as error:
        raise UserError(
            f"run.wandb: {error}. Run `wandb login`, set WANDB_MODE=offline to keep the run in "
            f"{run.directory}/wandb, or leave run.wandb out"
        ) from error
