"""The commands in the documents' code blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "launch").rglob("*.md")),
    ROOT / "data_prep/README.md",
]
COMMAND = re.compile(r"(\.venv/bin/|\$ )?(llmshearing|composer|make|python|launch/|srun|sbatch)\b")


@dataclass(frozen=True)
class Block:
    """A code block of commands.

    Attributes:
        text: the commands.
        language: the word after the fence.
        mark: the line above the fence.
        line: number of the fence, from 1.
    """

    text: str
    language: str
    mark: str
    line: int


def blocks(document: Path) -> list[Block]:
    """The blocks of a document that hold commands: bash, or text that starts with one of ours."""
    lines = document.read_text().splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language, text = lines[start][3:], "\n".join(lines[start + 1 : number])
        if language == "bash" or (not language and COMMAND.match(text)):
            mark = next((above for above in lines[:start][::-1] if above.strip()), "")
            found.append(Block(text, language, mark, start + 1))
        start = None
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block as words, without comments and with continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
