"""Text for people: the width of output, wrapped paragraphs, sizes in bytes, durations."""

from __future__ import annotations

import shutil
import sys
import textwrap

ENDLESS = 1000
"""Columns where there is no edge."""

_WIDEST_PARAGRAPH = 100
"""Columns beyond which lines are hard to read."""


def output_columns() -> int:
    """Return how wide output to stdout may be: COLUMNS, else the terminal's width, else ENDLESS."""
    edge = 80 if sys.stdout.isatty() else ENDLESS
    return shutil.get_terminal_size((edge, 25)).columns


def paragraph_columns() -> int:
    """Return how wide a paragraph on stdout may be."""
    columns = output_columns()
    return 80 if columns == ENDLESS else min(columns, _WIDEST_PARAGRAPH)


def wrapped(text: str, width: int, *, indent: str = "") -> str:
    """Return the text in lines of at most `width` columns; a longer word has a line of its own.

    `indent` precedes every line of a paragraph but the first.
    """
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


def size_text(size: float) -> str:
    """Return a number of bytes with the unit of 2^10, 2^20, … that fits: 1.5 MiB."""
    # Imported here, because the packages that import this module are imported by workers, too.
    import humanize  # noqa: PLC0415

    return humanize.naturalsize(size, binary=True, format="%.1f")


def duration_text(seconds: float | None) -> str:
    """Return a duration in three digits with the unit that fits: 25.6 µs; "-" for None."""
    import humanize  # noqa: PLC0415 - as above

    # The micro sign of Latin-1, as everywhere else here, instead of the Greek letter.
    return "-" if seconds is None else humanize.metric(seconds, "s").replace("\u03bc", "µ")
