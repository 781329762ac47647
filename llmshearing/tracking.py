"""Weights & Biases next to the run's own files, if a recipe names a project."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmshearing.config import RunSettings
from llmshearing.errors import UserError
from llmshearing.files import write_text

if TYPE_CHECKING:
    from composer.loggers import LoggerDestination


def loggers(run: RunSettings) -> "list[LoggerDestination]":
    """Composer's logger for the project; a resumed run continues as the same run there."""
    if run.wandb is None:
        return []
    from composer.loggers import WandBLogger

    directory = Path(run.directory)
    settings = {"dir": str(directory), "id": _run_id(directory), "resume": "allow"}
    name = "/".join(directory.resolve().parts[-2:])
    return [WandBLogger(project=run.wandb, name=name, init_kwargs=settings)]


def _run_id(directory: Path) -> str:
    """The run's id in the project; kept in its directory, since other runs may share its name."""
    from composer.utils import dist

    path = directory / "wandb-id.txt"
    if not path.is_file() and dist.get_global_rank() == 0:
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8") if path.is_file() else ""  # only the first rank tracks


@contextmanager
def failures_explained(run: RunSettings) -> Iterator[None]:
    """Turn wandb's errors at the start, such as a missing key, into one message."""
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
