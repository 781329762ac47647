"""Raw files, cut into units of work, and the documents in them.

A unit is a range of blocks of one file. Blocks are fixed pieces: of the bytes of a plain or a
compressed file, or the row groups of a Parquet file. A line belongs to the unit that holds the
block with its first byte, so however a file is cut, each line is read exactly once.
"""

import bz2
import codecs
import contextlib
import csv
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import orjson
import zstandard

from llmshearing.errors import UserError
from llmshearing.preparation import hf_datasets
from llmshearing.preparation.remote import RemotePath

DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
}
SUFFIXES = (  # in lower case; files are matched in any case
    *(f"{text}{packed}" for packed in ("", *DECODERS) for text in (".jsonl", ".json", ".ndjson")),
    ".parquet",
)
# Read only where a pattern names them: a folder of text may have a README.txt.
NAMED_SUFFIXES = tuple(f"{text}{packed}" for packed in ("", *DECODERS) for text in (".txt", ".csv"))
HEAD_BYTES = 1 << 16
EXAMPLES = 10  # values of a field to show that no filter asks for
BLOCK_BYTES = 1 << 20
COMPRESSED_BLOCK_BYTES = 1 << 16
# Each unit of a compressed file decompresses from the start of the file, which costs little
# compared with tokenising as long as they are few.
MAX_COMPRESSED_UNITS = 4

# Records that are a question and its answer: the fields of both, and of more of the question.
PAIRS = {
    "alpaca": ("instruction", "output", "input"),
    "prompt_completion": ("prompt", "completion"),
}

Seen: TypeAlias = dict[str, set[str]]  # values of fields, as JSON


@dataclass(frozen=True)
class TextFile:
    """A file of a domain."""

    path: Path | RemotePath
    name: str  # below the source folder, or its URL; for messages and the manifest
    size: int  # bytes

    @property
    def kind(self) -> str:
        """`parquet`, a suffix in `DECODERS`, or `plain`."""
        suffix = self.path.suffix.lower()
        return "parquet" if suffix == ".parquet" else suffix if suffix in DECODERS else "plain"

    @property
    def layout(self) -> str:
        """The suffix without compression: `.txt`, `.csv` and `.arrow` files are one unit each."""
        return Path(self.path.name.lower().removesuffix(self.kind)).suffix


class Document(NamedTuple):
    """One record of a file."""

    line: int  # or row, counted from 1 within the unit
    value: Any = None  # of the field, or None
    problem: str | None = None  # why there is no value
    blank: bool = False  # an empty line, or a record of another domain
    size: int = 0  # bytes of the line; in Parquet, the mean size of a row


def block_ranges(file: TextFile, unit_bytes: int) -> list[tuple[int, int]]:
    """Cut a file into units: half-open ranges of its blocks."""
    if file.layout in WHOLE:
        return [(0, 1)]
    if file.kind == "parquet":
        with _parquet(file) as table:
            blocks = table.metadata.num_row_groups
        per_unit = round(blocks * unit_bytes / file.size)
    elif file.kind == "plain":
        block = plain_block_bytes(unit_bytes)
        per_unit, blocks = unit_bytes // block, -(-file.size // block)
    else:
        blocks = -(-file.size // COMPRESSED_BLOCK_BYTES)
        per_unit = max(unit_bytes // COMPRESSED_BLOCK_BYTES, -(-blocks // MAX_COMPRESSED_UNITS))
    per_unit = max(1, per_unit)
    return [(first, min(first + per_unit, blocks)) for first in range(0, blocks, per_unit)]


def plain_block_bytes(unit_bytes: int) -> int:
    """Return the block size of plain files: a unit is at least one block."""
    return min(BLOCK_BYTES, unit_bytes)


@dataclass(frozen=True)
class Reads:
    """What to read of a record."""

    field: str  # with the text or the chat; a dot leads into a field
    where: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()  # paths; wanted values as JSON
    chat: bool = False  # whether it is a chat
    tools: str | None = None  # field with the functions which the assistant of a chat may call
    pair: str | None = None  # in `PAIRS`: the chat is a question and its answer

    def value(self, record: dict[str, Any]) -> Any:
        """Return the value of the field; with tools, a mapping of `messages` and `tools`."""
        value = _dialogue(record, self.pair) if self.pair else self._text(record)
        if self.tools and (tools := record.get(self.tools)):
            return {"messages": value, "tools": tools}
        return value

    def _text(self, record: dict[str, Any]) -> Any:
        if self.field in record:
            return record[self.field]
        value: Any = record
        for name in self.field.split("."):
            if not isinstance(value, dict):
                raise KeyError(name)
            value = value[name]
        return value

    def columns(self, known: Sequence[str], path: object) -> list[str]:
        """Return which columns of a table to read; a UserError if one is missing."""
        fields = PAIRS[self.pair][:2] if self.pair else (self.field,)
        names = {*fields, *(path[0] for path, _ in self.where)}
        needed = {name if name in known else name.partition(".")[0] for name in names}
        if not needed <= set(known):
            raise UserError(
                f"found the columns {', '.join(known)} in {path}, "
                f"expected {', '.join(sorted(names))}: set text_field or where"
            )
        optional = [self.tools, *(PAIRS[self.pair][2:] if self.pair else ())]
        return sorted(needed | ({*optional} & {*known}))

    def select(self, record: dict[str, Any], seen: Seen) -> bool:
        """Return whether a record is of the domain; a missing field counts as null.

        `seen` gets the values of the fields: all that are wanted, and a few others.
        """
        found = True
        for path, wanted in self.where:
            value: Any = record
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            text, others = json_text(value), seen.setdefault(".".join(path), set())
            found &= text in wanted
            if text in wanted or len(others) < EXAMPLES:
                others.add(text)
        return found


def _dialogue(record: dict[str, Any], pair: str) -> list[Any]:
    """Return the messages of a record in `PAIRS`, whose parts may be lists of messages (TRL)."""
    question, answer, *more = PAIRS[pair]
    asked, answered = record[question], record[answer]
    if isinstance(asked, list) and isinstance(answered, list):
        return [*asked, *answered]
    asked = [asked, *(record[name] for name in more if record.get(name))]
    if not all(isinstance(text, str) for text in (*asked, answered)):
        raise ValueError(f"found no text in `{question}` or `{answer}`, expected strings")
    return [
        {"role": "user", "content": "\n\n".join(asked)},
        {"role": "assistant", "content": answered},
    ]


def json_text(value: Any) -> str:
    """Format a value as JSON, so that 2023 equals 2023.0 but neither "2023" nor true."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def documents(
    file: TextFile,
    blocks: tuple[int, int],
    unit_bytes: int,
    reads: Reads,
    seen: Seen | None = None,
) -> Iterator[Document]:
    """Read the documents of a unit; a UserError if the file cannot be read to its end.

    `seen` as in `Reads.select`.
    """
    seen = {} if seen is None else seen
    try:
        if file.kind == "parquet" or file.layout in WHOLE:
            rows = WHOLE.get(file.layout, _parquet_rows)(file, blocks, reads)
            yield from (_document(number, *row, reads, seen) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(lines(file, blocks, unit_bytes), start=1):
            starts_file = number == 1 and blocks[0] == 0
            text = line.removeprefix(codecs.BOM_UTF8) if starts_file else line
            yield _parse(number, text, reads, seen)
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error.strerror or error}") from None


def _parse(number: int, line: bytes, reads: Reads, seen: Seen) -> Document:
    size = len(line)
    if not line or line.isspace():
        return Document(number, blank=True, size=size)
    try:
        try:
            record = orjson.loads(line)
        except ValueError:  # the other parser takes more, such as NaN and long integers
            record = json.loads(line.decode())
        return _document(number, record, size, reads, seen)
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start}"
    except (json.JSONDecodeError, RecursionError) as error:
        problem = f"malformed JSON: {error}"
    return Document(number, problem=problem, size=size)


def _document(number: int, record: Any, size: int, reads: Reads, seen: Seen) -> Document:
    """Read a record of any file; an error in its place becomes the document's problem."""
    try:
        if isinstance(record, ValueError):
            raise record
        if not isinstance(record, dict):
            raise ValueError(f"found {type(record).__name__}, expected an object")
        if reads.where and not reads.select(record, seen):
            return Document(number, blank=True, size=size)
        return Document(number, reads.value(record), size=size)
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start}"
    except ValueError as error:
        problem = str(error)
    except KeyError as error:
        problem = f"no field `{error.args[0] if reads.pair else reads.field}`"
    return Document(number, problem=problem, size=size)


def lines(file: TextFile, blocks: tuple[int, int], unit_bytes: int) -> Iterator[bytes]:
    """Read the lines whose first byte is in `blocks`, without their newlines."""
    with file.path.open("rb") as opened:
        if file.kind != "plain":
            yield from _compressed_lines(file, opened, *blocks)
            return
        block = plain_block_bytes(unit_bytes)
        if blocks[0]:
            opened.seek(blocks[0] * block - 1)
            opened.readline()  # the end of a line that begins before
        at = opened.tell()
        while at < blocks[1] * block and (line := opened.readline()):
            at += len(line)
            yield line.removesuffix(b"\n")


def _compressed_lines(file: TextFile, opened: BinaryIO, first: int, last: int) -> Iterator[bytes]:
    parts: list[bytes] = []  # of the current line
    begins = 0  # block of its first byte
    for index, text in _decompressed(file, opened):
        *ends, rest = text.split(b"\n")
        for end in ends:
            begins = begins if parts else index
            if begins >= last:
                return
            if begins >= first:
                yield b"".join([*parts, end])
            parts = []
        if rest:
            begins = begins if parts else index
            parts.append(rest)
    if parts and first <= begins < last:
        yield b"".join(parts)


def _decompressed(file: TextFile, opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Decompress a file of one or more members; each piece with the block that it ends in."""
    index, decoder = 0, None
    while data := opened.read(COMPRESSED_BLOCK_BYTES):
        while data:
            decoder = decoder or DECODERS[file.kind]()
            try:
                text = decoder.decompress(data)
            except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
                raise UserError(
                    f"found damaged data in {file.path} ({error}): get the file again"
                ) from None
            yield index, text
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None
        index += 1
    if decoder is not None:
        raise UserError(
            f"found {file.path} cut off before its end, expected a whole file: get it again"
        )


def beginning(file: TextFile) -> bytes:
    """Read the first bytes of a plain or compressed file, decompressed."""
    with file.path.open("rb") as opened:
        if file.kind == "plain":
            return opened.read(HEAD_BYTES)
        return next((piece for _, piece in _decompressed(file, opened) if piece), b"")[:HEAD_BYTES]


@contextlib.contextmanager
def _parquet(file: TextFile) -> Iterator[Any]:
    import pyarrow  # slow to import, and few need it
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        local = isinstance(file.path, Path)
        source = file.path if local else stack.enter_context(file.path.open("rb"))
        try:
            table = pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"cannot read {file.path} as Parquet: {error}") from None
        yield table


Row: TypeAlias = tuple[Any, int]  # a record, or the error in its place; its bytes


def _parquet_rows(file: TextFile, blocks: tuple[int, int], reads: Reads) -> Iterator[Row]:
    import pyarrow

    with _parquet(file) as table:
        columns = reads.columns(table.schema_arrow.names, file.path)
        size = file.size // max(1, table.metadata.num_rows)
        try:
            for batch in table.iter_batches(256, row_groups=range(*blocks), columns=columns):
                yield from _rows(batch, columns, size)
        except pyarrow.ArrowException as error:
            raise UserError(f"found damaged data in {file.path} ({error}): get it again") from None


def _arrow_rows(file: TextFile, _: tuple[int, int], reads: Reads) -> Iterator[Row]:
    assert isinstance(file.path, Path)
    for batch in hf_datasets.batches(file.path):
        columns = reads.columns(batch.schema.names, file.path)
        yield from _rows(batch, columns, batch.nbytes // max(1, batch.num_rows))


def _rows(batch: Any, columns: list[str], size: int) -> Iterator[Row]:
    for row in range(batch.num_rows):
        try:
            yield {name: batch.column(name)[row].as_py() for name in columns}, size
        except UnicodeDecodeError as error:
            yield error, size


def _text_rows(file: TextFile, _: tuple[int, int], reads: Reads) -> Iterator[Row]:
    """The whole file as one record."""
    with file.path.open("rb") as opened:
        if file.kind == "plain":
            content = opened.read()
        else:
            content = b"".join(piece for _, piece in _decompressed(file, opened))
    try:
        yield {reads.field: content.removeprefix(codecs.BOM_UTF8).decode()}, len(content)
    except UnicodeDecodeError as error:
        yield error, len(content)


def _csv_rows(file: TextFile, _: tuple[int, int], reads: Reads) -> Iterator[Row]:
    """The records of a file whose first line names its fields."""
    csv.field_size_limit(1 << 31)
    every = (0, 1 << 62)
    # A byte that is no UTF-8 becomes a character that no text can have, so its row is refused.
    text = (
        f"{line.decode(errors='surrogateescape')}\n" for line in lines(file, every, BLOCK_BYTES)
    )
    rows = csv.reader(text, strict=True)
    try:
        header = [name.removeprefix("\ufeff").strip() for name in next(rows, [])]
        reads.columns(header, file.path)
        for row in rows:
            size = sum(map(len, row)) + len(row)
            if len(row) == len(header):
                yield dict(zip(header, row, strict=True)), size
            elif row:
                yield ValueError(f"found {len(row)} values, expected {len(header)}"), size
    except csv.Error as error:
        raise UserError(
            f"found damaged data in {file.path}, line {rows.line_num:,} ({error}): correct the "
            "quotes"
        ) from None


# Files of which a unit is never a part, and how to read them.
WHOLE: dict[str, Callable[[TextFile, tuple[int, int], Reads], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".arrow": _arrow_rows,
}


def expansion(file: TextFile, field: str) -> float:
    """Estimate the bytes of lines (in Parquet, of the field) per byte of a file."""
    if file.kind == "parquet":
        with _parquet(file) as table:
            about = table.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        named = [one.total_uncompressed_size for one in columns if one.path_in_schema == field]
        return sum(named) / file.size
    if file.kind == "plain":
        return 1.0
    with file.path.open("rb") as opened:
        pieces = _decompressed(file, opened)
        text = sum(len(piece) for _, piece in itertools.takewhile(lambda one: not one[0], pieces))
    return text / min(file.size, COMPRESSED_BLOCK_BYTES)
