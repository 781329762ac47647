"""What an output directory already holds, so that a second attempt goes on where one stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmshearing.errors import UserError
from llmshearing.files import LOCK, write_json
from llmshearing.quickstart.stages import Stage

FILE = "quickstart.json"


@dataclass
class Record:
    """Finished stages with what they took.

    Attributes:
        path: the file.
        model: the model given, or None.
        done: by stage `seconds`, `peak_memory_gb` and `command`.
    """

    path: Path
    model: str | None
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, model: Path | None) -> Record:
        """Read the record of `root`; an empty one for a new or empty directory. Writes nothing.

        Raises:
            UserError: the directory holds something else, or a quickstart from another model.
        """
        path, name = root / FILE, str(model) if model else None
        if not path.is_file():
            if root.exists() and not (root.is_dir() and {p.name for p in root.iterdir()} <= {LOCK}):
                raise UserError(
                    f"found {root} in use, expected a new directory or one of an earlier "
                    "quickstart: choose another --out"
                )
            return cls(path, name)
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["model"] != name:
            raise UserError(
                f"found a quickstart from {held['model'] or 'a model of its own'} in {root}, "
                f"expected one from {name or 'a model of its own'}: choose another --out"
            )
        return cls(path, name, held["done"])

    def write(self) -> None:
        """Keep the record."""
        write_json(self.path, {"model": self.model, "done": self.done})

    def is_done(self, stage: Stage) -> bool:
        """Whether this very stage is finished."""
        entry = self.done.get(stage.name)
        return entry is not None and entry["command"] == " ".join(stage.command)

    def begin(self, stage: Stage, later: Sequence[Stage] = ()) -> None:
        """Take away what an attempt that was stopped, or another command, left behind.

        Args:
            stage: which is run now.
            later: stages after it; what they made of another command's result goes too.
        """
        changed = [stage, *later] if stage.name in self.done else []
        for each in changed:
            self.done.pop(each.name, None)
        self.write()
        leftovers = [stage.makes, *(p for s in changed for p in (s.makes, s.run_directory))]
        for path in filter(None, leftovers):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def end(self, stage: Stage, seconds: float, peak_memory_gb: float) -> None:
        """Note a finished stage."""
        self.done[stage.name] = {
            "seconds": round(seconds, 1),
            "peak_memory_gb": round(peak_memory_gb, 3),
            "command": " ".join(stage.command),
        }
        self.write()
