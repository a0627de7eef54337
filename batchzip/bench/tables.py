"""Tables: the figures of a run for people. The quickest of each row is marked, whoever it is."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from batchzip.bench.peers import CPUS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.bench.result import Change, Row

_AHEAD = 1.02
"""Quicker by less than 2 % is not ahead."""


def compress_tables(rows: list[Row]) -> Iterator[Table]:
    """Make a table for each operation: a line a situation, a column a contender."""
    for operation in ("compress", "decompress"):
        chosen = [row for row in rows if (row.benchmark, row.operation) == ("compress", operation)]
        if not chosen:
            continue
        names = list(dict.fromkeys(row.contender for row in chosen))
        situations: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
        for row in chosen:
            situations[row.algorithm, row.batch][row.contender] = row
        table = Table(
            title=f"{operation}: µs a page of 4 KiB (compression ratio); best: who is quickest,"
            f" ÷ limit: batchzip's best against {CPUS} × bare"
        )
        table.add_column("")
        table.add_column("batch", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        table.add_column("÷ limit", justify="right")
        table.add_column("best")
        for (algorithm, batch), found in situations.items():
            table.add_row(algorithm, str(batch), *_cells(names, found))
        yield table


def _cells(names: list[str], found: dict[str, Row]) -> list[Text | str]:
    ours = min((found[name] for name in ("sequential", "workers")), key=lambda row: row.us)
    others = [
        row for name, row in found.items() if name not in {"bare", "sequential", "workers"}
    ]
    peer = min(others, key=lambda row: row.us, default=None)
    best = ours if peer is None or ours.us <= peer.us * _AHEAD else peer
    cells: list[Text | str] = []
    for name in names:
        row = found.get(name)
        if row is None:
            cells.append("")
            continue
        ratio = "" if row.ratio is None else f" ({row.ratio:.2f})"
        cells.append(Text(f"{row.us:.2f}{ratio}", style="bold" if row is best else ""))
    cells.append(f"{found['bare'].us / CPUS / ours.us:.2f}")
    cells.append("batchzip" if best is ours else best.contender)
    return cells


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
            f"{found['store'].ratio:.2f}",
            f"{found['store'].more['held_by_stored']:.3f}",
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
