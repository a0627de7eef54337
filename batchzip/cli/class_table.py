"""The pool's class table: what each size class holds, and what compaction would free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

COLUMNS = (
    ("object bytes", "size", 0),
    ("zspages", "zspages", 3),
    ("room", "room", 4),
    ("objects", "objects", 2),
    ("bytes", "bytes", 1),
    ("freeable", "freeable", 1),
)
"""Heading, field of `Pool.classes()` and rank. The fields are: zspages; objects that they have room
for; objects in them; bytes of the zspages; bytes that compaction would free."""


def class_table(lines: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of the lines of `SwapStore.classes()`, given as dicts, with a line of sums."""
    lines = list(lines)
    table = Table()
    for heading, key, rank in COLUMNS:
        total = "all" if key == "size" else f"{sum(line[key] for line in lines):,}"
        table.add_column(heading, rank=rank, left=False, footer=total)
    for line in lines:
        table.add_row(*(f"{line[key]:,}" for _, key, _ in COLUMNS))
    return table
