"""Text for tests, and ways to run the scripts as a user does."""

import json
import random
import subprocess
import sys
from pathlib import Path

from llmshearing import cli

PREP = Path(__file__).parents[2] / "data_prep"

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who "
    "def return import self None x = 1 + 2; {} [] () \\alpha $x^2$ \n \n\n \t Sieb Ärger 東京 "
    "😀 привет"
).split(" ")


def text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": one, "meta": {"n": i}}) + "\n" for i, one in enumerate(texts))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def prepare(config: Path, *overrides: str) -> int:
    """Run the command in this process and give its exit status."""
    return cli.main(["prepare", str(config), *overrides])


def command(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script as a user does."""
    return subprocess.run(
        [sys.executable, str(PREP / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    """All files below `root`, the work folder's included."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
