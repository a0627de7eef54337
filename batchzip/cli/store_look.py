"""What `batchzip top` shows of a store: a snapshot, and its changes since the one before."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from batchzip.cli.class_table import COLUMNS
from batchzip.cli.look import Column, Look, Section, name_column
from batchzip.paged.statistics import hit_ratio
from batchzip.terminal.text import duration_text, size_text

if TYPE_CHECKING:
    from typing import Any

    from batchzip.cli.look import Row
    from batchzip.cli.snapshot import Snapshot
    from batchzip.store.latency import Latency

_TRAFFIC = {
    "page_stores": "stored",
    "page_loads": "loaded",
    "written_back_pages": "written back",
    "pool_limit_hit": "rejected: pool at its limit",
    "reject_alloc_fail": "rejected: no memory",
    "reject_compress_poor": "rejected: compresses poorly",
    "reject_compress_fail": "rejected: compression failed",
    "reject_reclaim_fail": "rejected: writeback failed",
    "decompress_fail": "damaged when loaded",
}


def store_look(now: Snapshot, before: Snapshot | None) -> Look:
    """Return what is shown of `now`. Rates and latencies are those since `before`."""
    status = now.status
    held, limit = status["pool_total_size"], status["max_pool_bytes"]
    sections = [
        _traffic(now, before),
        _latencies(now.latencies(before)),
        _groups(now, before),
        _workers(now.loads(before)),
        _regions(now, before),
        _classes(now),
    ]
    return Look(
        title=(
            f"process {status['pid']}: {status['algorithm']} on {status['backend']}, "
            f"pages of {status['page_size']:,} bytes"
        ),
        facts=[("store", now.address), *_facts(now)],
        sections=sections,
        filled=held / limit if limit else None,
    )


def _facts(now: Snapshot) -> list[tuple[str, str]]:
    status, counters = now.status, now.counters
    held, limit = status["pool_total_size"], status["max_pool_bytes"]
    in_bytes = counters.stored_pages * status["page_size"]
    compressed = status["compressed_bytes"]
    used = f"{size_text(held)}, no limit"
    if limit is not None:
        used = "limit 0"
        if limit:
            used = f"{size_text(held)} of {size_text(limit)} ({held / limit:.0%})"
        if status["pool_full"]:
            used += f", full until {status['accept_threshold_percent']}%"
    whole = in_bytes + sum(group["value_bytes"] for group in status["groups"].values())
    # The compressed bytes of values in the file are not counted apart.
    known = compressed and not counters.backed_values
    ratio = f", ratio {whole / compressed:.2f}" if known else ""
    kinds = (
        f"{counters.same_filled_pages:,} same-filled, "
        f"{counters.stored_incompressible_pages:,} incompressible"
    )
    facts = [
        ("pool", used),
        ("pages", f"{counters.stored_pages:,} in memory ({size_text(in_bytes)}){ratio}"),
        ("", kinds),
    ]
    if counters.stored_values + counters.backed_values:
        values = f"{counters.stored_values:,} in memory, {counters.backed_values:,} in the file"
        facts.append(("values", values))
    if counters.backed_pages or status["backing"]:
        backed = f"{counters.backed_pages:,} pages in {size_text(counters.backing_file_size)}"
        where = f": {status['backing']}" if status["backing"] else ""
        facts.append(("file", backed + where))
    return facts


def _traffic(now: Snapshot, before: Snapshot | None) -> Section:
    columns = (name_column("pages"), Column("per second"), Column("total"))
    rows: list[Row] = [
        (text, now.rate(key, before), now.count(key)) for key, text in _TRAFFIC.items()
    ]
    return Section("Traffic", columns, rows)


def _latencies(latencies: dict[str, Latency]) -> Section:
    columns = (
        name_column("operation"),
        *(Column(heading, duration_text) for heading in ("p50", "p99", "mean")),
        Column("timed calls"),
    )
    rows: list[Row] = [
        (
            operation,
            latency.quantile(0.5),
            latency.quantile(0.99),
            latency.mean_s,
            latency.count,
        )
        for operation, latency in latencies.items()
    ]
    return Section("Latency", columns, rows)


def _workers(workers: list[tuple[int, int, float | None]]) -> Section:
    columns = (Column("worker", str, rank=0, left=True), Column("load", _percent), Column("pages"))
    return Section("Workers", columns, [(pid, load, pages) for pid, pages, load in workers])


def _groups(now: Snapshot, before: Snapshot | None) -> Section:
    columns = (
        name_column("group"),
        Column("pages", rank=2),
        Column("in the pool", size_text, rank=0),
        Column("limit", _size, rank=5),
        Column("stored/s", rank=3),
        Column("loaded/s", rank=4),
    )
    groups = now.status["groups"]
    earlier = {} if before is None else before.status["groups"]
    rows: list[Row] = [
        (
            name or "(none)",
            group["pages"],
            group["pool_bytes"],
            group["max_bytes"],
            _rate(group, earlier.get(name), "page_stores", now, before),
            _rate(group, earlier.get(name), "page_loads", now, before),
        )
        for name, group in groups.items()
    ]
    return Section(
        "Groups",
        columns,
        rows if len(rows) > 1 else [],
        order=2,
        empty=lambda row: not (row[1] or row[2] or row[4] or row[5]),
    )


def _regions(now: Snapshot, before: Snapshot | None) -> Section:
    """Return the paged memories."""
    columns = (
        name_column("region"),
        Column("size", size_text, rank=4),
        Column("budget", size_text, rank=3),
        Column("resident", size_text, rank=1),
        Column("faults/s", rank=2),
        Column("hits", _percent, rank=6),
        Column("p50", duration_text, rank=7),
        Column("p90", duration_text, rank=8),
        Column("p99", duration_text, rank=5),
    )
    rows = [_region(name, region, now, before) for name, region in now.status["regions"].items()]
    return Section("Paged", columns, rows, order=3)


def _region(name: str, region: dict[str, Any], now: Snapshot, before: Snapshot | None) -> Row:
    size = now.status["page_size"]
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
    return (
        name,
        region["pages"] * size,
        region["budget_pages"] * size,
        region["resident_pages"] * size,
        rate,
        hit_ratio(missing, minor, ahead) if missing + minor + ahead else None,
        *(latency.quantile(share) for share in (0.5, 0.9, 0.99)),
    )


def _classes(now: Snapshot) -> Section:
    columns = tuple(Column(heading, rank=rank) for heading, _, rank in COLUMNS)
    lines = [asdict(line) for line in now.classes]
    rows: list[Row] = [tuple(line[key] for _, key, _ in COLUMNS) for line in lines]
    total = ("all", *(sum(row[at] for row in rows) for at in range(1, len(COLUMNS))))
    return Section("Sizes", columns, rows, total=total)


def _rate(
    new: dict[str, Any],
    old: dict[str, Any] | None,
    key: str,
    now: Snapshot,
    before: Snapshot | None,
) -> float | None:
    """Return by how much a figure grew per second; None if it was not there before."""
    if before is None or old is None:
        return None
    change: float = (new[key] - old[key]) / (now.taken_s - before.taken_s)
    return change


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _size(size: int | None) -> str:
    return "-" if size is None else size_text(size)
