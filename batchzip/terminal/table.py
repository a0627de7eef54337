"""Tables that fit their width by leaving columns out instead of breaking cells.

Each column has a rank. While a table is too wide, the column of the highest rank is left out. A
column of rank 0 always stays. A line below the table names the missing columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich.table
from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

GAP = 2
"""Columns of the terminal between two columns of a table."""

SHORTEST_NAME = 20
"""Width to which names in the first column are cut before a column of figures is left out."""


def fitting(widths: Sequence[int], ranks: Sequence[int], room: int) -> list[int]:
    """Return the numbers of the columns that fit in `room`. Of equal ranks, the last goes first."""
    shown = list(range(len(widths)))
    while sum(widths[at] + GAP for at in shown) - GAP > room:
        last = max(shown, key=lambda at: (ranks[at], at))
        if not ranks[last]:
            break
        shown.remove(last)
    return shown


def cut(text: str, width: int) -> str:
    """Return a name cut to `width` columns. The middle is cut, because names differ at the ends."""
    kept = width - 1
    if len(text) <= width or kept < 0:
        return text
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


class Table:
    """A table without lines. The first column is aligned to the left, figures to the right."""

    def __init__(self, title: str | None = None) -> None:
        self._title = title
        self._headings: list[str] = []
        self._footers: list[str] = []
        self._ranks: list[int] = []
        self._left: list[bool] = []
        self._wraps: list[bool] = []
        self._rows: list[list[Text]] = []
        self._sections: set[int] = set()

    def add_column(
        self,
        heading: str,
        *,
        rank: int | None = None,
        left: bool | None = None,
        wraps: bool = False,
        footer: str = "",
    ) -> None:
        """Add a column to the right. Its rank is its number by default, so the last goes first.

        `wraps` says that its cells are prose, which may be broken between words.
        """
        number = len(self._headings)
        self._headings.append(heading)
        self._ranks.append(number if rank is None else rank)
        self._left.append(not number if left is None else left)
        self._wraps.append(wraps)
        self._footers.append(footer)

    def add_row(self, *cells: str | Text) -> None:
        """Add a row with a cell per column. Brackets in a cell are text, not markup."""
        if len(cells) != len(self._headings):
            raise ValueError(f"{len(cells)} cells for {len(self._headings)} columns")
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def add_section(self) -> None:
        """Add an empty line below the present rows."""
        self._sections.add(len(self._rows))

    def as_markdown(self) -> str:
        """Return the table as Markdown, with all columns and the title above it."""
        ends = ["---" if left else "---:" for left in self._left]
        rows = [self._headings, ends, *([cell.plain for cell in row] for row in self._rows)]
        if any(self._footers):
            rows.append(self._footers)
        lines = [f"| {' | '.join(map(_as_cell, row))} |" for row in rows]
        return "\n".join([*([f"{self._title}:", ""] if self._title else []), *lines])

    @property
    def row_count(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def _least(self, at: int) -> int:
        """Return the minimum width of a column."""
        texts = [self._headings[at], self._footers[at], *(row[at].plain for row in self._rows)]
        parts = (part for text in texts for part in _parts(text, words=self._wraps[at]))
        return max(map(cell_len, parts), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [self._least(at) for at in range(len(self._headings))]
        name_width = widths[0]
        if not self._wraps[0]:
            widths[0] = min(name_width, SHORTEST_NAME)
        shown = fitting(widths, self._ranks, options.max_width)
        others = sum(widths[at] + GAP for at in shown[1:])
        widths[0] = max(min(name_width, options.max_width - others), 1)
        table = rich.table.Table(
            box=None,
            pad_edge=False,
            padding=(0, GAP, 0, 0),
            header_style="table.header",
            show_footer=any(self._footers),
            show_header=any(self._headings),
        )
        for at in shown:
            wraps = self._wraps[at]
            table.add_column(
                Text(self._headings[at]),
                justify="left" if self._left[at] else "right",
                footer=Text(self._footers[at]),
                no_wrap=not wraps,
                overflow="fold",
                width=None if wraps else widths[at],
            )
        for number, row in enumerate(self._rows):
            if number in self._sections:
                table.add_row()
            cells = [row[at] for at in shown]
            if not self._wraps[0] and cell_len(cells[0].plain) > widths[0]:
                cells[0] = Text(cut(cells[0].plain, widths[0]), cells[0].style)
            table.add_row(*cells)
        parts: list[RenderableType] = [table]
        if self._title:
            parts = [Text(), Text(self._title, style="table.title"), table]
        missing = (self._headings[at] for at in range(len(widths)) if at not in shown)
        if names := dict.fromkeys(" ".join(heading.split()) for heading in missing):
            parts.append(Text(f"left out for lack of room: {', '.join(names)}", style="hint"))
        for part in parts:
            for line in console.render_lines(part, options, pad=False):
                yield from _stripped(line)
                yield Segment.line()


def _stripped(line: list[Segment]) -> list[Segment]:
    """Return a line without the trailing blanks that pad its last cell."""
    text, style, control = line[-1] if line else Segment("")
    if text.strip():
        return [*line[:-1], Segment(text.rstrip(), style, control)]
    return _stripped(line[:-1]) if line else []


def _as_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*")


def _parts(text: str, *, words: bool) -> Iterable[str]:
    return text.split() if words else text.splitlines()
