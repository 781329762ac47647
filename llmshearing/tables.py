"""Tables of text: one value, shown the same way in a log, in a file and on a terminal."""

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

NUMBER = re.compile(r"([-+<>~]?[\d.].*|-|)$")


@dataclass(frozen=True)
class Table:
    """A table whose cells are text."""

    title: str  # a line above the table, or empty
    header: Sequence[str]  # names of the columns; empty for a table of names and values
    # cells. Columns of numbers are right-aligned, except the first column
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()  # lines below the table
    prose: bool = False  # whether all cells are text, so that all columns are left-aligned

    def __str__(self) -> str:
        """Plain text, as wide as its longest cells, without a newline at the end."""
        text = io.StringIO()
        Console(file=text, width=10_000, color_system=None).print(self._grid())
        grid = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([*([self.title] if self.title else []), *grid, *self.notes])

    def show(self, file: TextIO | None = None) -> None:
        """Print to `file` (standard output): fitted to a terminal's width, plain text elsewhere."""
        console = Console(file=file or sys.stdout, highlight=False)
        if not console.is_terminal:
            console.file.write(f"{self}\n")
            return
        if self.title:
            console.print(Text(self.title, style="bold"))
        console.print(self._grid())
        for note in self.notes:
            console.print(Text(note))

    def _grid(self) -> RichTable:
        grid = RichTable(
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            show_header=bool(self.header),
            header_style="bold",
        )
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        for number, cells in enumerate(columns):
            numeric = number > 0 and not self.prose and all(map(NUMBER.match, cells))
            name = Text(self.header[number]) if self.header else ""
            grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            grid.add_row(*map(Text, row))
        return grid
