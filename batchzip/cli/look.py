"""Look: what `batchzip top` shows at one moment, whether it is printed or on the full screen.

Rows hold values, not text: the screen sorts by them.
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
    """Return a whole number with its thousands apart, or "-" where there is none."""
    return "-" if value is None else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `rank` and `left` are those of `terminal.table.Table`."""

    heading: str
    text: Callable[[Any], str] = number
    rank: int = 1
    left: bool = False


def name_column(heading: str) -> Column:
    """Return the column of the names."""
    return Column(heading, str, rank=0, left=True)


@dataclass(frozen=True, slots=True)
class Section:
    """A table with a name. `order` is the column that it is sorted by at first, the largest value on top."""

    name: str
    columns: tuple[Column, ...]
    rows: list[Row]
    order: int | None = None
    total: Row | None = None
    """Values of a last line, with a text in place of the first one."""
    empty: Callable[[Row], bool] = lambda _: False
    """Tells the rows that are not worth a line where the look is printed."""

    def cells(self, row: Row) -> list[str]:
        """Return the values of a row as text."""
        return [
            column.text(value) if at or not isinstance(value, str) else value
            for at, (column, value) in enumerate(zip(self.columns, row, strict=True))
        ]

    def ordered(self, order: int | None, *, largest_first: bool = True) -> list[Row]:
        """Return the rows sorted by a column; unknown values count as the least."""
        if order is None:
            return self.rows if largest_first else self.rows[::-1]
        return sorted(
            self.rows, key=lambda row: (row[order] is not None, row[order]), reverse=largest_first
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What is shown: a title, facts with their names, warnings, and tables."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    filled: float | None = None
    """The share of its limit that the pool takes, from 0 to 1."""


def print_look(look: Look, console: Console, *, most: int | None) -> None:
    """Print a look. Of a table that is sorted, print at most `most` rows, and none that are empty."""
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
    # A column without a value, as rates have none in a first look, only takes room.
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
    console.print(table)
    empty = len(section.rows) - len(rows)
    parts = {"more": len(rows) - len(shown), "empty": empty}
    if left_out := ", ".join(f"{count:,} {what}" for what, count in parts.items() if count):
        console.write_line(f"{section.name.lower()} left out: {left_out}", style="hint")
