"""Real text found on any machine with this project installed, in four domains; no download.

python      source of the standard library
reference   the language reference of `pydoc`, and docstrings of scientific packages
packages    long descriptions, licences and notes of the installed packages
headers     C and C++ headers that PyTorch, NumPy and Python bring along

Files are taken in the order of a hash of their path, so the same installation gives the same text.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from llmshearing.files import write_text

log = logging.getLogger(__name__)

# Installed with this project; their docstrings explain, where others only name arguments.
EXPLAINING_PACKAGES = ("numpy", "scipy", "matplotlib", "torch", "networkx", "sympy")
HEADER_PACKAGES = ("torch", "numpy")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ops"}
NOTES = re.compile(r"licen[sc]e|copying|notice|authors|readme|changelog|changes|news", re.I)
NOTE_SUFFIXES = {"", ".txt", ".md", ".rst"}
SHORTEST_DOCUMENT, LONGEST_DOCUMENT = 200, 20_000
PASSAGE_BREAK, WORD = re.compile(r"\n[ \t]*\n"), re.compile(r"\w+")
RUN_WORDS, MOST_REPEATED = 8, 0.5
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def collect(characters: int) -> dict[str, list[str]]:
    """Gather the documents of each domain, up to the one that reaches this number of characters.

    A passage that was seen before, in any domain, is left out: licences and boilerplate recur all
    over an installation, and held-out text must not be a copy of training text.
    """
    seen: set[int] = set()
    domains: dict[str, Callable[[], Iterator[str]]] = {
        "packages": _packages,
        "reference": _reference,
        "python": lambda: _texts(_files(Path(sysconfig.get_path("stdlib")), "*.py")),
        "headers": _headers,
    }
    return {name: _take(find(), seen, characters) for name, find in domains.items()}


def write(domains: Mapping[str, list[str]], out: Path) -> None:
    """Write `out/<domain>/text.jsonl`, one `{"text": ...}` per line."""
    for name, documents in domains.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
        write_text(out / name / "text.jsonl", "\n".join(lines) + "\n")
        characters = sum(map(len, documents)) / 1e6
        log.info("%-10s %5d documents  %.1fM characters", name, len(documents), characters)


def _take(documents: Iterable[str], seen: set[int], characters: int) -> list[str]:
    taken, size = [], 0
    for document in documents:
        text = new_passages(document, seen)[:LONGEST_DOCUMENT]
        if len(text) >= SHORTEST_DOCUMENT:
            taken.append(text)
            size += len(text)
        if size >= characters:
            break
    return taken


def new_passages(text: str, seen: set[int]) -> str:
    """The passages of `text` of which at most half was seen before, by runs of eight words.

    A passage ends at an empty line. Case, punctuation and line breaks do not count, so a licence
    is recognised however it is wrapped. Passages of fewer words always stay. `seen` has the hashes
    of the runs of all earlier documents and gets those of this one.
    """
    kept = []
    for passage in filter(str.strip, PASSAGE_BREAK.split(text)):
        words = WORD.findall(passage.lower())
        runs = [hash(tuple(words[i : i + RUN_WORDS])) for i in range(len(words) - RUN_WORDS + 1)]
        if sum(run in seen for run in runs) <= MOST_REPEATED * len(runs):
            kept.append(passage)
        seen.update(runs)
    return "\n\n".join(kept)


def _headers() -> Iterator[str]:
    folders = [*map(_package_folder, HEADER_PACKAGES), Path(sysconfig.get_path("include"))]
    return _texts(_shuffled(path for folder in folders for path in _files(folder, "*.h")))


def _reference() -> Iterator[str]:
    from pydoc_data import topics

    yield from (topics.topics[name] for name in sorted(topics.topics))
    folders = map(_package_folder, EXPLAINING_PACKAGES)
    files = _shuffled(path for folder in folders for path in _files(folder, "*.py"))
    yield from map(docstrings, _texts(files))


def _packages() -> Iterator[str]:
    installed = {p.metadata["Name"].lower(): p for p in importlib.metadata.distributions()}
    for name in sorted(installed, key=_hash):
        package = installed[name]
        notes = sorted(
            str(package.locate_file(file))
            for file in package.files or ()
            if NOTES.search(file.name) and file.suffix.lower() in NOTE_SUFFIXES
        )
        description = str(package.metadata.json.get("description", ""))
        yield "\n\n".join([description, *_texts(map(Path, notes))])


def docstrings(source: str) -> str:
    """All docstrings of a module with more than one line; empty if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return ""
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, DOCUMENTED))
    return "\n\n".join(text for text in found if text and "\n" in text)


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else Path(name)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder` without tests and generated operators."""
    return _shuffled(
        p for p in folder.rglob(pattern) if not LEFT_OUT & {*p.relative_to(folder).parts}
    )


def _shuffled(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of a hash of their last parts, which do not depend on where Python is."""
    return sorted(paths, key=lambda path: (_hash("/".join(path.parts[-3:])), path))


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield textwrap.dedent(text).expandtabs(4)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
