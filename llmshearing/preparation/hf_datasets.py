"""Data sets of the Hugging Face library `datasets`: its Arrow files, which a unit of work reads."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError


def find(path: str, name: str | None, split: str, what: str) -> list[Path]:
    """The Arrow files of a split, downloaded into the cache of `datasets` if they are not local.

    `path` is a data set of the hub, a folder with data files, or one that `save_to_disk` wrote;
    `name` is its configuration. Messages begin with `what`.

    Raises:
        UserError: `datasets` is missing, or has no such data set, configuration or split.
    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UserError(
            f"{what}: found split {split!r}, expected a name such as train: a part of a split is "
            "chosen with the recipe's splits"
        )
    folder = Path(path).expanduser()
    saved = folder / split if (folder / "dataset_dict.json").is_file() else folder
    try:
        if (saved / "state.json").is_file():
            return _saved(saved, what)
        if folder.is_dir() and saved != folder:
            known = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            raise ValueError(f"found the splits {', '.join(known)}")
        import datasets  # only here: it takes long to import, and may be missing

        found = datasets.load_dataset(path, name, split=split)
        return [Path(file["filename"]) for file in found.cache_files]
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{what}: found dataset {path}, which needs the package datasets: install it with "
            "`pip install 'llmshearing[remote]'`"
        ) from error
    except Exception as error:  # it has many of its own, of its file systems and of the hub
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{what}: cannot load dataset {path}, name {name}, split {split} ({why}): correct the "
            "names, log in to the hub (`hf auth login`), or run the same command again"
        ) from error


def _saved(folder: Path, what: str) -> list[Path]:
    """The files of a split that `save_to_disk` wrote."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(
            f"{what}: found no {', '.join(missing) or 'data'} in {folder}: copy it again"
        )
    return files


def batches(path: Path) -> Iterator[Any]:
    """The record batches of an Arrow file; a UserError if it is damaged."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
            yield from reader
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"found damaged data in {path} ({error}): get it again") from None
