"""The input files of a domain: found below folders and globs, and checked to be what they claim."""

import codecs
import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from llmshearing.errors import UserError
from llmshearing.files import POINTERS
from llmshearing.preparation import remote
from llmshearing.preparation.sources import NAMED_SUFFIXES, SUFFIXES, WHOLE, TextFile, beginning

SHOWN = 5  # files listed in a message


class FoundFiles(NamedTuple):
    """What folders and globs name."""

    files: list[TextFile]  # in the order of their names
    skipped: dict[str, str]  # files and folders that are not read, and why


def find(root: Path, patterns: list[str], what: str) -> FoundFiles:
    """Find the files that folders and globs below `root` name. Links are followed.

    Raises:
        UserError: a pattern finds no file, a link leads nowhere, or a file is not JSON Lines.
    """
    found: dict[str, TextFile] = {}
    skipped: dict[str, str] = {}
    elsewhere = [pattern for pattern in patterns if remote.is_url(pattern)]
    patterns = [pattern for pattern in patterns if not remote.is_url(pattern)]
    if patterns and not root.is_dir():
        raise UserError(f"found no folder {root}, expected the source of the text: set source=")
    first: dict[str, str] = {}  # the name under which each file or folder was first read
    try:
        for pattern in elsewhere:
            _find_elsewhere(pattern, what, found, skipped)
        for pattern in patterns:
            fit, known = 0, len(skipped)
            for path in _paths(root, pattern, first, skipped):
                name = _name(root, path)
                why = _unfit(path, pattern)
                fit += not why
                if why := why or _repeated(path, name, first):
                    skipped[name] = why
                else:
                    found[name] = TextFile(path, name, path.stat().st_size)
            if not fit:
                raise UserError(
                    f"{what}: found no file for `{pattern}` below {root}, expected a folder or "
                    f"glob of {', '.join(SUFFIXES)}{listed(dict([*skipped.items()][known:]))}"
                )
    except OSError as error:
        raise UserError(f"{what}: cannot read {error.filename}: {error.strerror}") from None
    problems = {name: why for name, source in found.items() if (why := _problem(source))}
    if problems:
        raise UserError(
            f"{what}: found {len(problems):,} of {len(found):,} files that cannot be read, "
            f"expected one JSON object per line{listed(problems)}"
        )
    return FoundFiles([found[name] for name in sorted(found)], dict(sorted(skipped.items())))


def _find_elsewhere(
    pattern: str, what: str, found: dict[str, TextFile], skipped: dict[str, str]
) -> None:
    known = len(found)
    for path in remote.find(pattern, what):
        if path.name.startswith("."):
            skipped[str(path)] = "hidden"
        elif not path.name.lower().endswith(_suffixes(pattern)):
            skipped[str(path)] = "unknown suffix"
        else:
            found[str(path)] = TextFile(path, str(path), path.size)
    if len(found) == known:
        raise UserError(
            f"{what}: found no text for {pattern}, expected a folder or glob of "
            f"{', '.join(SUFFIXES)}{listed(skipped)}"
        )


def _suffixes(pattern: str) -> tuple[str, ...]:
    """The suffixes of the files that a pattern is read for."""
    pattern = pattern.partition("?")[0] if pattern.startswith(remote.WEB) else pattern
    return tuple(one for one in NAMED_SUFFIXES if pattern.lower().endswith(one)) or SUFFIXES


def listed(reasons: dict[str, str]) -> str:
    """Format the first few of some files with a reason for each."""
    lines = [f"\n  {name}: {why}" for name, why in list(reasons.items())[:SHOWN]]
    more = len(reasons) - len(lines)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _paths(
    root: Path, pattern: str, first: dict[str, str], skipped: dict[str, str]
) -> Iterator[Path]:
    base, *tail = [pattern]
    if not os.path.lexists(root / pattern):
        base, *tail = re.split(r"(?:^|/)\*\*(?:/|$)", pattern)
    if len(tail) > 1:
        raise UserError(f"found the pattern `{pattern}`, expected `**` at most once")
    names = [base or "."]
    if not os.path.lexists(root / base):
        names = sorted(glob.glob(base, root_dir=root))  # noqa: PTH207 - leaves out hidden files
    for name in names:
        place = root / name
        if not place.is_dir():
            yield place
            continue
        for path in _walk(root, place, first, skipped):
            if not any(tail) or path.relative_to(place).match(tail[0]):
                yield path


def _walk(
    root: Path, folder: Path, first: dict[str, str], skipped: dict[str, str]
) -> Iterator[Path]:
    """List the files below a folder: first those in real folders, then those behind links."""
    tops = [str(folder)]
    for top in tops:
        for place, folders, names in os.walk(top, onerror=_fail):
            path = Path(place)
            if why := _repeated(path, name := _name(root, path), first):
                skipped[name] = why
                folders.clear()
                continue
            hidden = {name for name in (*folders, *names) if name.startswith(".")}
            skipped |= {_name(root, path / name): "hidden" for name in hidden}
            shown = sorted(set(folders) - hidden)
            links = [name for name in shown if (path / name).is_symlink()]
            tops += [str(path / name) for name in links]
            folders[:] = [name for name in shown if name not in links]
            yield from (path / name for name in sorted(set(names) - hidden))


def _fail(error: OSError) -> None:
    raise error


def _repeated(path: Path, name: str, first: dict[str, str]) -> str | None:
    earlier = first.setdefault(os.path.realpath(path), name)
    return f"the same as {earlier}, which is read" if earlier != name else None


def _unfit(path: Path, pattern: str) -> str | None:
    """Explain why a path is not read; a UserError if only its name is that of a text file."""
    if path.name.lower().endswith(_suffixes(pattern)):
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "is a link to nothing"
            raise UserError(f"found {path}, which {what}, expected text: restore or remove it")
        return None
    if path.name.lower().endswith(NAMED_SUFFIXES):
        return "read only where the pattern ends with its suffix, as in `*.csv`"
    return "unknown suffix" if path.exists() else "a link to nothing"


def _problem(source: TextFile) -> str | None:
    """Explain why a file cannot be read or cannot hold one document per line, or return None."""
    try:
        return _content_problem(source)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _content_problem(source: TextFile) -> str | None:
    if source.size == 0:
        return "an empty file; remove it"
    if isinstance(source.path, Path):
        with source.path.open("rb") as file:
            if file.read(256).startswith(POINTERS):
                return (
                    "a pointer to a large file, not the file; run `git lfs pull` or `git annex get`"
                )
    if source.kind == "parquet":
        return None
    head = beginning(source)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16; convert it to UTF-8"
    if source.layout in WHOLE:
        return None
    head = head.removeprefix(codecs.BOM_UTF8).strip()
    line, newline, _ = head.partition(b"\n")
    if b"\r" in line and not newline:
        return "lines that end with CR alone; convert them with `tr '\\r' '\\n'`"
    if newline and line.strip() == b"{":
        return "one JSON document over several lines; convert it with `jq -c .`"
    if line.startswith(b"["):
        with contextlib.suppress(ValueError):
            orjson.loads(line)
            if newline:
                return None  # one bad document
        return "one JSON array; convert it with `jq -c '.[]'`"
    return None
