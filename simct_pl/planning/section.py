"""Section: a titled table of words. Plans and preflights are lists of them, printed by rich or written as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Section:
    """A table whose first column names what the others say.

    headers: as many as each row has cells. note: what a reader must know to read it. text: shown as it is, below.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.headers) for row in self.rows), self.title


def print_sections(console: Console, sections: Sequence[Section]) -> None:
    """All of them, one below the other; nothing in a cell is read as markup."""
    for section in sections:
        console.print(Text(section.title, style="bold"))
        table = Table()
        for number, header in enumerate(section.headers):
            table.add_column(header, overflow="fold", justify="left" if number == 0 else "default")
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        if section.rows:
            console.print(table)
        if section.text:
            console.print(Text(section.text))
        if section.note:
            console.print(Text(section.note, style="dim"))
        console.print()
