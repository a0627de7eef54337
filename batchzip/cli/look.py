"""Look: what `batchzip top` shows at one moment, printed or on the full screen.

Rows contain values instead of text, because the screen sorts by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchzip.terminal.table import Table
from batchzip.terminal.text import paragraph_columns, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.terminal.console import Console

Row = tuple[Any, ...]
"""A value for each column."""


def number(value: float | None) -> str:
    """Return a whole number with separated thousands, or "-" for None."""
    return "-" if value is None else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `rank` and `left` are those of `terminal.table.Table`."""

    heading: str
    text: Callable[[Any], str] = number
    rank: int = 1
    left: bool = False


def name_column(heading: str) -> Column:
    """Return a column of names."""
    return Column(heading, str, rank=0, left=True)


@dataclass(frozen=True, slots=True)
class Section:
    """A named table. At first it is sorted by column `order`, in falling order."""

    name: str
    columns: tuple[Column, ...]
    rows: list[Row]
    order: int | None = None
    total: Row | None = None
    """Values of a last line, with a text in the first column."""
    empty: Callable[[Row], bool] = lambda _: False
    """Returns whether a row is left out of a printed look."""

    def cells(self, row: Row) -> list[str]:
        """Return the values of a row as texts."""
        return [
            column.text(value) if at or not isinstance(value, str) else value
            for at, (column, value) in enumerate(zip(self.columns, row, strict=True))
        ]

    def ordered(self, order: int | None, *, largest_first: bool = True) -> list[Row]:
        """Return the rows sorted by a column. None counts as the smallest value."""
        if order is None:
            return self.rows if largest_first else self.rows[::-1]
        return sorted(
            self.rows, key=lambda row: (row[order] is not None, row[order]), reverse=largest_first
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What is shown: a title, named facts, warnings and tables."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    filled: float | None = None
    """The pool's size as a fraction of its limit."""


def print_look(look: Look, console: Console, *, most: int | None) -> None:
    """Print a look. Of a sorted table, print at most `most` rows, and no empty ones."""
    width = paragraph_columns()
    console.write_line(wrapped(look.title, width, indent="  "))
    for name, fact in look.facts:
        console.write_line(wrapped(f"{name:8}{fact}", width, indent=" " * 8))
    for warning in look.warnings:
        console.write_line(wrapped(warning, width, indent="  "), style="bad")
    for section in look.sections:
        if section.rows:
            _print_section(section, console, most)


def _print_section(section: Section, console: Console, most: int | None) -> None:
    rows = [row for row in section.ordered(section.order) if not section.empty(row)]
    shown = rows if section.order is None else rows[:most]
    # A column without any value only takes room, such as rates in a first look.
    known = [at for at in range(len(section.columns)) if any(row[at] is not None for row in shown)]
    table = Table()
    total = None if section.total is None else section.cells(section.total)
    for at in known:
        column = section.columns[at]
        footer = "" if total is None else total[at]
        table.add_column(column.heading, rank=column.rank, left=column.left, footer=footer)
    for row in shown:
        cells = section.cells(row)
        table.add_row(*(cells[at] for at in known))
    console.write_line()
    if shown:
        console.print(table)
    empty = len(section.rows) - len(rows)
    parts = {"more": len(rows) - len(shown), "empty": empty}
    if left_out := ", ".join(f"{count:,} {what}" for what, count in parts.items() if count):
        console.write_line(f"{section.name.lower()} left out: {left_out}", style="hint")
