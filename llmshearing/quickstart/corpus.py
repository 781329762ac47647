"""Real text found on any machine with this project installed, in four domains; no download.

python      source of the standard library
reference   the language reference of `pydoc`, and docstrings of scientific packages
packages    long descriptions, licences and notes of the installed packages
headers     C and C++ headers that PyTorch, NumPy and Python bring along

The order is a hash of each file's path, so that the same installation gives the same documents.
"""

from __future__ import annotations

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
from llmshearing.quickstart.duplicates import Seen

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

log = logging.getLogger(__name__)

# All of these come with the project; their docstrings explain, where others only name arguments.
EXPLAINING_PACKAGES = ("numpy", "scipy", "matplotlib", "torch", "networkx", "sympy")
HEADER_PACKAGES = ("torch", "numpy")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ops"}
NOTES = re.compile(r"licen[sc]e|copying|notice|authors|readme|changelog|changes|news", re.I)
NOTE_SUFFIXES = {"", ".txt", ".md", ".rst"}
SHORTEST_DOCUMENT = 200
LONGEST_DOCUMENT = 20_000


def collect(characters_per_domain: int) -> dict[str, list[str]]:
    """Gather the documents of each domain.

    A passage that was seen before, in any domain, is left out: licences and boilerplate recur all
    over an installation, and held-out text must not be a copy of training text.

    Args:
        characters_per_domain: where a domain's text ends.
    """
    seen = Seen()
    domains: dict[str, Callable[[], Iterator[str]]] = {
        "packages": _packages,
        "reference": _reference,
        "python": _python,
        "headers": _headers,
    }
    return {name: _take(find(), seen, characters_per_domain) for name, find in domains.items()}


def write(domains: Mapping[str, list[str]], out: Path) -> None:
    """Write `out/<domain>/text.jsonl`, one `{"text": ...}` a line."""
    for name, documents in domains.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
        write_text(out / name / "text.jsonl", "\n".join(lines) + "\n")
        characters = sum(map(len, documents)) / 1e6
        log.info("%-10s %5d documents  %.1fM characters", name, len(documents), characters)


def _take(documents: Iterable[str], seen: Seen, characters: int) -> list[str]:
    taken, size = [], 0
    for document in documents:
        text = seen.without_repeats(document)[:LONGEST_DOCUMENT]
        if len(text) < SHORTEST_DOCUMENT:
            continue
        taken.append(text)
        size += len(text)
        if size >= characters:
            break
    return taken


def _python() -> Iterator[str]:
    return _texts(_files(Path(sysconfig.get_path("stdlib")), "*.py"))


def _headers() -> Iterator[str]:
    folders = [_package_folder(name) for name in HEADER_PACKAGES]
    folders.append(Path(sysconfig.get_path("include")))
    return _texts(_shuffled(path for folder in folders for path in _files(folder, "*.h")))


def _reference() -> Iterator[str]:
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield topics.topics[name]
    folders = [_package_folder(name) for name in EXPLAINING_PACKAGES]
    for text in _texts(_shuffled(p for folder in folders for p in _files(folder, "*.py"))):
        yield docstrings(text)


def _packages() -> Iterator[str]:
    installed = {}
    for package in importlib.metadata.distributions():
        installed.setdefault(package.metadata["Name"].lower(), package)
    for name in sorted(installed, key=_hash):
        package = installed[name]
        notes = [
            str(package.locate_file(file))
            for file in package.files or ()
            if NOTES.search(file.name) and file.suffix.lower() in NOTE_SUFFIXES
        ]
        yield "\n\n".join([description(package), *_texts(Path(path) for path in sorted(notes))])


def description(package: importlib.metadata.Distribution) -> str:
    """The long description of an installed package, wherever its metadata keeps it."""
    return str(package.metadata.json.get("description", ""))


def docstrings(source: str) -> str:
    """All docstrings of a module that hold more than a line; empty where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    found = (ast.get_docstring(node) for node in _definitions(tree))
    return "\n\n".join(text for text in found if text and "\n" in text)


def _definitions(node: Definition) -> Iterator[Definition]:
    """A module, class or function and those directly below it, in the order of the source."""
    yield node
    for child in node.body:
        if isinstance(child, Definition):
            yield from _definitions(child)


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else Path(name)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder`, tests and generated operators left out, in the order of their hash."""
    paths = folder.rglob(pattern) if folder.is_dir() else ()
    return _shuffled(p for p in paths if not LEFT_OUT & set(p.relative_to(folder).parts))


def _shuffled(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of a hash of their last parts, which do not tell where Python lives."""
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
