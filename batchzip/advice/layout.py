"""Layout: reports for people that fit a width and never break inside a word.

If a table is too wide, its first column is wrapped. If it is still too wide, each row becomes a
paragraph: the name on a line of its own, and beneath it the figures, each with its heading.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP = 2
_INDENT = "  "


def wrapped(text: str, width: int, *, indent: str = "") -> str:
    """Return the text in lines of at most `width` columns; a longer word has a line of its own."""
    return "\n".join(
        textwrap.fill(
            line,
            max(width, 1),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Return rows beneath headings: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    figures = sum(each + _GAP for each in widths[1:])
    longest = max(len(word) for row in (headings, *rows) for word in (*row[0].split(), ""))
    name_width = min(widths[0], width - figures)
    if name_width < min(longest + len(_INDENT), widths[0]):
        return "\n".join(_paragraph(headings, row, width) for row in rows)
    lines = []
    for row in (headings, *rows):
        name, *more = wrapped(row[0], name_width, indent=_INDENT).splitlines() or [""]
        line = f"{name:<{name_width}}" + "".join(
            " " * _GAP + f"{cell:>{each}}" for cell, each in zip(row[1:], widths[1:], strict=True)
        )
        lines += [line.rstrip(), *more]
    return "\n".join(lines)


def _paragraph(headings: Sequence[str], row: Sequence[str], width: int) -> str:
    figures = ", ".join(
        f"{heading} {cell}" for heading, cell in zip(headings[1:], row[1:], strict=True) if cell
    )
    name = wrapped(row[0], width, indent=_INDENT)
    indented = textwrap.indent(wrapped(figures, width - len(_INDENT)), _INDENT)
    return f"{name}\n{indented}" if figures else name
