"""Tasks whose documents are JSON lines in a folder, so that no network is needed.

The files in `definitions/` are in lm-eval's own format, with its prompts. The documents are those
that llm-foundry ships: `query`, `choices` and `gold`, or the fields that a definition names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmshearing.errors import UserError

DEFINITIONS = Path(__file__).with_name("definitions")


def local_tasks(names: Iterable[str], documents: Path) -> dict[str, dict[str, Any]]:
    """lm-eval's configs of tasks by name, reading their documents from a folder.

    Raises:
        UserError: there is no definition of a task, or no file of its documents.
    """
    known = {path.stem: path for path in sorted(DEFINITIONS.glob("*.yaml"))}
    found = {}
    for name in names:
        if name not in known:
            raise UserError(
                f"found the task {name} with --documents, expected some of {', '.join(known)}; "
                "leave --documents out for lm-eval's own tasks"
            )
        config: Any = OmegaConf.to_container(OmegaConf.load(known[name]))
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {
            split: str(_existing(documents / file)) for split, file in files.items()
        }
        found[name] = config
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"found no file {path}, expected the documents of a task as JSON lines")
    return path
