"""Text for people: the width of output, wrapped paragraphs, sizes in bytes, durations."""

from __future__ import annotations

import shutil
import sys
import textwrap

ENDLESS = 1000
"""Width of output that has no edge, such as a file."""

_WIDEST_PARAGRAPH = 100
"""Width beyond which lines are hard to read."""


def output_columns() -> int:
    """Return the width of stdout: COLUMNS, or the terminal's width, or ENDLESS."""
    edge = 80 if sys.stdout.isatty() else ENDLESS
    return shutil.get_terminal_size((edge, 25)).columns


def paragraph_columns() -> int:
    """Return the maximum width of a paragraph on stdout."""
    columns = output_columns()
    return 80 if columns == ENDLESS else min(columns, _WIDEST_PARAGRAPH)


def wrapped(text: str, width: int, *, indent: str = "") -> str:
    """Return the text in lines of at most `width` columns. A longer word gets its own line.

    `indent` precedes all lines of a paragraph except the first.
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
    """Return a number of bytes with a binary unit that fits, such as 1.5 MiB."""
    # Imported here, because the packages that import this module are imported by workers, too.
    import humanize  # noqa: PLC0415

    return humanize.naturalsize(size, binary=True, format="%.1f")


def duration_text(seconds: float | None) -> str:
    """Return a duration with three digits and a unit, such as 25.6 µs, or "-" for None."""
    import humanize  # noqa: PLC0415 - as above

    # The micro sign of Latin-1, as everywhere else here, instead of the Greek letter.
    return "-" if seconds is None else humanize.metric(seconds, "s").replace("\u03bc", "µ")
