"""Where the project's log goes during a run."""

import logging
from pathlib import Path

from llmshearing.progress import ConsoleHandler


def set_up_log(directory: Path, rank: int) -> None:
    """Log to the console and to `log.txt` from rank 0; other ranks log errors only."""
    logger = logging.getLogger("llmshearing")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    if rank != 0:
        logger.setLevel(logging.ERROR)
        return
    directory.mkdir(parents=True, exist_ok=True)
    logger.setLevel(logging.INFO)
    for handler in (ConsoleHandler(), logging.FileHandler(directory / "log.txt")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
