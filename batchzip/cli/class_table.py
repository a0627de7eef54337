"""The pool's class table as people read it: what each size class holds, and what could be freed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

COLUMNS = (
    ("object bytes", "size"),
    ("zspages", "zspages"),
    ("room", "room"),
    ("objects", "objects"),
    ("bytes", "bytes"),
    ("freeable", "freeable"),
)
"""Heading and field of `Pool.classes()`: zspages, the objects that they have room for and those that they
have, their bytes, and those of them that moving objects together would free."""


def class_table(lines: Iterable[Mapping[str, Any]]) -> Table:
    """Make a table of the lines of `SwapStore.classes()`, as dicts, with a line of sums."""
    lines = list(lines)
    table = Table(box=None, pad_edge=False, show_footer=True)
    for heading, key in COLUMNS:
        total = "all" if key == "size" else f"{sum(line[key] for line in lines):,}"
        table.add_column(heading, justify="right", footer=total)
    for line in lines:
        table.add_row(*(f"{line[key]:,}" for _, key in COLUMNS))
    return table
