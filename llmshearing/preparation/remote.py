"""Text in object stores, on the web and on the Hugging Face hub, read through fsspec.

A unit of work reads its own part of a file by ranges, and no copy stays on disk. The version of a
file is its ETag, or what the store has instead of one.
"""

import contextlib
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from llmshearing.errors import UserError

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
WEB = ("http://", "https://")
READ_AHEAD = 4 << 20  # bytes of a request: a round trip to a store takes as long as some megabytes
# What stores call the version of an object, in the order of preference.
VERSIONS = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "mtime")
DENIED = (401, 403)


def is_url(pattern: str) -> bool:
    """Whether a pattern names files elsewhere."""
    return URL.match(pattern) is not None


@dataclass(frozen=True)
class RemotePath:
    """A file elsewhere, which is used as a `Path` is."""

    url: str
    size: int  # bytes
    version: str  # changes with the content
    ranges: bool = True  # whether parts of it can be read

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def suffix(self) -> str:
        """As of a `Path`."""
        return PurePosixPath(self.name).suffix

    @property
    def stamp(self) -> tuple[int, str]:
        """What changes when the file does."""
        return self.size, self.version

    def now(self) -> "RemotePath":
        """The file as the store has it at this moment; a UserError if it cannot be read."""
        store = _store(self.url)
        store.invalidate_cache()
        with _explained(self.url):
            return _path(self.url, store.info(self.url))

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open it; a UserError, here or while reading, if it cannot be read."""
        store = _store(self.url)
        with _explained(self.url):
            if self.ranges:
                opened = store.open(
                    self.url, mode, block_size=READ_AHEAD, cache_type="readahead", size=self.size
                )
                return io.BufferedReader(_Reader(self.url, opened), 1 << 16)
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            with store.open(self.url, mode, block_size=0) as opened:
                shutil.copyfileobj(opened, copy)
            copy.seek(0)
            return copy  # pyright: ignore[reportReturnType]


def find(pattern: str, what: str) -> list[RemotePath]:
    """List the files of a URL: one file, a folder at any depth, or a glob.

    Raises:
        UserError: there is none, or the store cannot be read.
    """
    store = _store(pattern)
    with _explained(pattern):
        if pattern.startswith(WEB):
            if "*" in pattern:
                raise UserError(
                    f"{what}: found the glob {pattern}, but files on the web cannot be listed: "
                    "give the address of each file"
                )
            file = _path(pattern, store.info(pattern))
            return [replace(file, ranges=_gives_ranges(store, file))]
        if any(sign in pattern for sign in "*?["):
            found = store.glob(pattern, detail=True)
        else:
            found = store.find(pattern, detail=True) or {pattern: store.info(pattern)}
    files = {name: info for name, info in found.items() if info.get("type", "file") == "file"}
    if not files:
        raise UserError(f"{what}: found no file for {pattern}, expected a file, folder or glob")
    return [_path(_address(pattern, name), files[name]) for name in sorted(files)]


def _gives_ranges(store: Any, file: RemotePath) -> bool:
    """Whether a web server sends a part of a file when asked for one."""
    with store.open(file.url, "rb", block_size=1, size=file.size) as opened:
        opened.seek(min(1, file.size))
        try:
            opened.read(1)
        except ValueError:  # fsspec's, when a whole file comes
            return False
    return True


def _address(pattern: str, name: str) -> str:
    """The URL of a listed name, which some stores give without their scheme."""
    scheme = URL.match(pattern)
    assert scheme is not None
    return name if is_url(name) else f"{scheme[0]}{name}"


def _path(url: str, info: dict[str, Any]) -> RemotePath:
    size, version = info.get("size"), next((info[key] for key in VERSIONS if info.get(key)), None)
    if size is None:
        raise UserError(f"found no size of {url}, expected a file of known size: download it")
    return RemotePath(url, size, str(version or size))


def _store(url: str) -> Any:
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"found {url}, which cannot be read here ({error}): install what is missing with "
            "`pip install 'llmshearing[remote]'`"
        ) from error


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the errors of any store into one of the user's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every store has its own
        cause = (
            error.__cause__ or error
        )  # fsspec makes "not found" of all that a web server refuses
        why, status = str(cause).strip() or type(cause).__name__, getattr(cause, "status", None)
        denied = isinstance(error, PermissionError) or "credentials" in why.lower()
        if denied or status in DENIED:
            raise UserError(
                f"found {url}, which may not be read ({why}): log in to the store or ask for access"
            ) from error
        if isinstance(error, FileNotFoundError) and status in (None, 404):
            raise UserError(
                f"found no {url}, expected a file, folder or glob: correct it"
            ) from error
        raise UserError(
            f"cannot read {url} ({why}): run the same command again; finished pieces are kept"
        ) from error


class _Reader(io.RawIOBase):
    """A file of fsspec whose errors are the user's; `io.BufferedReader` reads lines faster."""

    def __init__(self, url: str, opened: Any) -> None:
        self._url, self._opened = url, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _explained(self._url):
            data = self._opened.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()

    def close(self) -> None:
        self._opened.close()
        super().close()
