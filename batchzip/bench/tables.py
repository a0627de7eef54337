"""Tables: the figures of a run for people. They say who is quickest, whoever it is."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table

from batchzip.bench.peers import CPUS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.bench.result import Change, Row

OURS = ("sequential", "workers")

_AHEAD = 1.02
"""Quicker by less than 2 % is not ahead."""


def compress_tables(rows: list[Row]) -> Iterator[Table]:
    """Make a table for each algorithm and operation: a line a contender, a column a size of batch."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.benchmark == "compress":
            groups[row.algorithm, row.operation].append(row)
    for (algorithm, operation), chosen in groups.items():
        batches = sorted({row.batch for row in chosen})
        found = {(row.contender, row.batch): row for row in chosen}
        table = Table(title=f"{algorithm}, {operation}: µs a page of 4 KiB by pages of a batch")
        table.add_column("")
        for batch in batches:
            table.add_column(str(batch), justify="right")
        table.add_column("ratio", justify="right")
        for name in dict.fromkeys(row.contender for row in chosen):
            cells = [found.get((name, batch)) for batch in batches]
            ratio = next(cell.ratio for cell in cells if cell is not None)
            table.add_row(
                name,
                *("" if cell is None else f"{cell.us:.2f}" for cell in cells),
                "" if ratio is None else f"{ratio:.2f}",
            )
        table.add_section()
        ours, best = zip(*(_judged(found, batch) for batch in batches), strict=True)
        table.add_row(f"batchzip ÷ limit ({CPUS} × bare)", *ours, "")
        table.add_row("quickest", *best, "")
        yield table


def _judged(found: dict[tuple[str, int], Row], batch: int) -> tuple[str, str]:
    """Say how near batchzip's best is to the limit, and who is quickest; bare is the measure."""
    here = {name: row for (name, size), row in found.items() if size == batch}
    bare = here.pop("bare")
    ours = min((here.pop(name) for name in OURS), key=lambda row: row.us)
    peer = min(here.values(), key=lambda row: row.us, default=ours)
    best = "batchzip" if ours.us <= peer.us * _AHEAD else peer.contender
    return f"{bare.us / CPUS / ours.us:.2f}", best


def swap_table(rows: list[Row]) -> Table:
    """Make a table of whole working sets: a line a contender."""
    table = Table(title="a whole working set: µs a page, and what a single load takes")
    table.add_column("")
    for heading in ("store", "load", "p50", "p99", "p99.9", "ratio", "held ÷ stored"):
        table.add_column(heading, justify="right")
    by_name: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.benchmark == "swap":
            by_name[row.algorithm, row.contender][row.operation] = row
    for (algorithm, name), found in by_name.items():
        load, single = found.get("load"), found.get("single load")
        more = single.more if single is not None else {}
        table.add_row(
            f"{name}, {algorithm}" if algorithm else name,
            f"{found['store'].us:.2f}",
            f"{load.us:.2f}" if load else "",
            *(
                f"{more[key]:.2f}" if key in more else ""
                for key in ("p50_us", "p99_us", "p99_9_us")
            ),
            "" if found["store"].ratio is None else f"{found['store'].ratio:.2f}",
            f"{held:.3f}" if (held := found["store"].more.get("held_by_stored")) else "",
        )
    return table


def change_table(changes: list[Change]) -> Table:
    """Make a table of what got slower and what quicker; differences that are none are left out."""
    table = Table(title="µs a page, before and now; change after the machine's own is taken out")
    for heading in ("", "batch", "before", "now", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for change in changes:
        if change.certain:
            row = change.row
            table.add_row(
                f"{row.algorithm} {row.operation}, {row.contender}".strip(),
                str(row.batch),
                f"{change.before:.2f}",
                f"{change.now:.2f}",
                f"{change.share:+.0%}",
            )
    return table
