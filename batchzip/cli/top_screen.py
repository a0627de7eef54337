"""What `batchzip top` shows of a snapshot and the one before."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchzip.advice import amount
from batchzip.cli.class_table import class_table
from batchzip.cli.output import duration
from batchzip.paged.statistics import hit_ratio

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchzip.cli.snapshot import Snapshot
    from batchzip.store.latency import Latency

_CAUSES = {
    "pool_limit_hit": "pool at its limit",
    "reject_alloc_fail": "no memory",
    "reject_compress_poor": "compresses poorly",
    "reject_compress_fail": "compression failed",
    "reject_reclaim_fail": "writeback failed",
    "decompress_fail": "damaged when loaded",
}
_BAR = 30
"""Columns of a bar."""

_LEAST_CLASSES = 3
"""Lines of the class table, however low the screen."""


def screen(now: Snapshot, before: Snapshot | None, *, height: int | None) -> RenderableType:
    """Draw it; of the class table as many lines as fit `height`, None: all."""
    parts: list[RenderableType] = [
        Text(
            f"process {now.status['pid']}: {now.status['algorithm']} on {now.status['backend']}, "
            f"pages of {now.status['page_size']:,} bytes"
        ),
        Text(now.address if height is None else f"{now.address}   q quits"),
        Text(),
        _sizes(now),
        Text(),
        _traffic(now, before),
    ]
    lines = 6 + 5 + len(_CAUSES) + 3
    if latencies := now.latencies(before):
        parts += [Text(), _latencies(latencies)]
        lines += len(latencies) + 2
    if workers := now.loads(before):
        parts += [Text(), _workers(workers)]
        lines += len(workers) + 2
    if len(now.status["groups"]) > 1:
        parts += [Text(), _groups(now, before)]
        lines += len(now.status["groups"]) + 2
    if regions := now.status["regions"]:
        parts += [Text(), _regions(now, before)]
        lines += len(regions) + 2
    room = None if height is None else max(_LEAST_CLASSES, height - lines - 3)
    largest = sorted(now.classes, key=lambda line: -line.bytes)[:room]
    shown = sorted(largest, key=lambda line: line.size)
    parts += [Text()]
    if len(shown) < len(now.classes):
        parts.append(Text(f"{len(shown)} of {len(now.classes)} size classes, the largest"))
    parts.append(class_table(map(asdict, shown)))
    return Group(*parts)


def _sizes(now: Snapshot) -> Table:
    status, counters = now.status, now.counters
    held, limit = status["pool_total_size"], status["max_pool_bytes"]
    in_bytes = counters.stored_pages * status["page_size"]
    compressed = status["compressed_bytes"]
    table = Table.grid(padding=(0, 2))
    used = f"{amount(held)} held, no limit"
    bar: RenderableType = Text()
    if limit is not None:
        used = f"{amount(held)} of {amount(limit)} ({held / limit:.0%})" if limit else "limit 0"
        bar = ProgressBar(total=limit or 1, completed=min(held, limit), width=_BAR)
        threshold = status["accept_threshold_percent"]
        used += f", full until {threshold}%" if status["pool_full"] else ""
    table.add_row("pool", used, bar)
    values = counters.stored_values + counters.backed_values
    whole = in_bytes + sum(group["value_bytes"] for group in status["groups"].values())
    # What of values lies in the file is not told apart.
    known = compressed and not counters.backed_values
    ratio = f"ratio {whole / compressed:.2f}" if known else "ratio -"
    table.add_row("pages", f"{counters.stored_pages:,} in memory ({amount(in_bytes)})", ratio)
    kinds = (
        f"{counters.same_filled_pages:,} same-filled, "
        f"{counters.stored_incompressible_pages:,} incompressible"
    )
    table.add_row("", kinds, "")
    if values:
        shown = f"{counters.stored_values:,} in memory, {counters.backed_values:,} in the file"
        table.add_row("values", shown, "")
    backed = f"{counters.backed_pages:,} pages in {amount(counters.backing_file_size)}"
    table.add_row("file", backed, status["backing"] or "")
    return table


def _traffic(now: Snapshot, before: Snapshot | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("pages", "a second", "in all", "rejections", "a second", "in all"):
        table.add_column(heading, justify="left" if heading in ("pages", "rejections") else "right")
    pages = {
        "page_stores": "stored",
        "page_loads": "loaded",
        "written_back_pages": "written back",
    }
    left = [(text, key) for key, text in pages.items()]
    right = [(text, key) for key, text in _CAUSES.items()]
    for row in range(len(right)):
        cells: list[str] = []
        for side in (left, right):
            if row < len(side):
                text, key = side[row]
                cells += [text, _per_second(now.rate(key, before)), f"{now.count(key):,}"]
            else:
                cells += ["", "", ""]
        table.add_row(*cells)
    return table


def _latencies(latencies: dict[str, Latency]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("latency", "p50", "p99", "mean", "timed calls"):
        table.add_column(heading, justify="left" if heading == "latency" else "right")
    for operation, latency in latencies.items():
        times = latency.quantile(0.5), latency.quantile(0.99), latency.mean_s
        table.add_row(operation, *map(duration, times), f"{latency.count:,}")
    return table


def _workers(workers: list[tuple[int, int, float | None]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("worker")
    table.add_column("load", justify="right")
    table.add_column("pages in all", justify="right")
    for pid, pages, load in workers:
        table.add_row(str(pid), "-" if load is None else f"{load:.0%}", f"{pages:,}")
    return table


def _groups(now: Snapshot, before: Snapshot | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("group", "pages", "in the pool", "limit", "stored/s", "loaded/s"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for name, group in now.status["groups"].items():
        earlier = None if before is None else before.status["groups"].get(name)
        rates = [
            None
            if before is None or earlier is None
            else (group[key] - earlier[key]) / (now.taken_s - before.taken_s)
            for key in ("page_stores", "page_loads")
        ]
        limit = group["max_bytes"]
        table.add_row(
            Text(name or "(none)"),
            f"{group['pages']:,}",
            amount(group["pool_bytes"]),
            "-" if limit is None else amount(limit),
            *map(_per_second, rates),
        )
    return table


def _regions(now: Snapshot, before: Snapshot | None) -> Table:
    """Draw the paged memories; hits and latencies are those since the snapshot before, if there is one."""
    table = Table(box=None, pad_edge=False)
    headings = "region", "size", "budget", "resident", "faults/s", "hits", "p50", "p90", "p99"
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "region" else "right")
    size = now.status["page_size"]
    for name, region in now.status["regions"].items():
        earlier = None if before is None else before.status["regions"].get(name)
        missing, minor, ahead = (
            region[key] - (0 if earlier is None else earlier[key])
            for key in ("faults_missing", "faults_minor", "readahead_hits")
        )
        latency: Latency = region["latency"]
        rate = None
        if before is not None and earlier is not None:
            rate = (missing + minor) / (now.taken_s - before.taken_s)
            latency -= earlier["latency"]
        table.add_row(
            Text(name),
            amount(region["pages"] * size),
            amount(region["budget_pages"] * size),
            amount(region["resident_pages"] * size),
            _per_second(rate),
            f"{hit_ratio(missing, minor, ahead):.0%}" if missing + minor + ahead else "-",
            *(duration(latency.quantile(share)) for share in (0.5, 0.9, 0.99)),
        )
    return table


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"
