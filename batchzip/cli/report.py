"""The report of `batchzip swap`: a table for people, or one JSON document.

MB is 10⁶ bytes, MiB is 2²⁰. Keys of the JSON document contain their unit and do not change; new
ones may be added. A figure that does not exist is null, for example if nothing was loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.cli.class_table import class_table
from batchzip.terminal.table import Table
from batchzip.terminal.text import paragraph_columns, size_text, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchzip.cli.round_trip import RoundTrip
    from batchzip.cli.side import Side
    from batchzip.pool.class_use import ClassUse
    from batchzip.terminal.console import Console


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one backend.

    `workers` is the number of lanes besides the caller: threads or worker processes.
    `compression_ratio` is the bytes of the pages kept ÷ `compressed_bytes`; same-filled pages have
    no compressed bytes. `pool_overhead` is `pool_held_bytes` ÷ `compressed_bytes`. Throughput is in
    uncompressed bytes; that of load is measured with load_many(). `classes` is the pool's class
    table.
    """

    workers: int
    stored_pages: int
    same_filled_pages: int
    incompressible_pages: int
    rejected_pages: int
    rejected_folios: dict[str, int]
    compressed_bytes: int
    compression_ratio: float | None
    pool_held_bytes: int
    pool_overhead: float | None
    store_s: float
    store_mb_per_s: float | None
    store_us_per_page: float | None
    load_s: float
    load_mb_per_s: float | None
    load_us_per_page: float | None
    single_loads: int
    load_p50_us: float | None
    load_p99_us: float | None
    cpu_s: float
    own_cpu_s: float
    worker_cpu_s: float
    compared_pages: int
    differing_pages: int
    classes: list[ClassUse]


_COMPARED = (
    "store_mb_per_s",
    "store_us_per_page",
    "load_mb_per_s",
    "load_us_per_page",
    "load_p50_us",
    "load_p99_us",
    "cpu_s",
)
"""Figures whose ratio to the sequential backend is reported."""


def figures(side: Side) -> Figures:
    """Return the figures of one side after a round trip. Its store must still be open."""
    counters = side.store.counters
    page_size = side.engine.page_size
    compressed = side.store.compressed_bytes
    stored = side.offered_pages - side.rejected_pages
    p50, p99 = (
        np.percentile(side.single_load_ns, [50, 99]) / 1e3 if side.single_load_ns else (None, None)
    )
    return Figures(
        workers=side.lanes,
        stored_pages=stored,
        same_filled_pages=counters.same_filled_pages,
        incompressible_pages=counters.stored_incompressible_pages,
        rejected_pages=side.rejected_pages,
        rejected_folios=dict(sorted(side.rejected_folios.items())),
        compressed_bytes=compressed,
        compression_ratio=_ratio(stored * page_size, compressed),
        pool_held_bytes=counters.pool_total_size,
        pool_overhead=_ratio(counters.pool_total_size, compressed),
        store_s=side.store_s,
        store_mb_per_s=_ratio(side.offered_pages * page_size / 1e6, side.store_s),
        store_us_per_page=_ratio(side.store_s * 1e6, side.offered_pages),
        load_s=side.load_s,
        load_mb_per_s=_ratio(side.loaded_pages * page_size / 1e6, side.load_s),
        load_us_per_page=_ratio(side.load_s * 1e6, side.loaded_pages),
        single_loads=len(side.single_load_ns),
        load_p50_us=None if p50 is None else float(p50),
        load_p99_us=None if p99 is None else float(p99),
        cpu_s=side.own_cpu_s + side.worker_cpu_s,
        own_cpu_s=side.own_cpu_s,
        worker_cpu_s=side.worker_cpu_s,
        compared_pages=side.loaded_pages,
        differing_pages=int(side.differing.sum()),
        classes=side.store.classes(),
    )


def as_document(
    trip: RoundTrip, settings: dict[str, Any], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Return the whole result as a JSON document. The stores must still be open.

    `left_out` has the backends that cannot take part, with reasons. `ratios` are those of the
    workers.
    """
    source = trip.source
    backends = {side.name: asdict(figures(side)) for side in trip.sides}
    sequential = backends["sequential"]
    for of in backends.values():
        of["ratios"] = {key: _ratio(of[key], sequential[key]) for key in _COMPARED}
    return {
        "batchzip_version": batchzip.__version__,
        "source": {
            "kind": source.kind,
            "name": source.name,
            **source.details(),
            "pages": trip.pages,
            "page_bytes": source.page_size,
            "padded_bytes": source.padded_bytes,
        },
        "settings": settings,
        "all_equal": trip.difference is None,
        "first_difference": None if trip.difference is None else asdict(trip.difference),
        "backends": backends,
        "left_out": dict(left_out),
        "ratios": backends.get("workers", {}).get("ratios", {}),
    }


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("pages kept", "stored_pages", "{:,}".format),
    ("  same-filled", "same_filled_pages", "{:,}".format),
    ("  incompressible", "incompressible_pages", "{:,}".format),
    ("pages rejected", "rejected_pages", "{:,}".format),
    ("compressed", "compressed_bytes", size_text),
    ("compression ratio", "compression_ratio", "{:.2f}".format),
    ("pool: held ÷ stored", "pool_overhead", "{:.3f}".format),
    ("store, MB/s", "store_mb_per_s", "{:,.0f}".format),
    ("store, µs per page", "store_us_per_page", "{:.2f}".format),
    ("load, MB/s", "load_mb_per_s", "{:,.0f}".format),
    ("load, µs per page", "load_us_per_page", "{:.2f}".format),
    ("single load p50, µs", "load_p50_us", "{:.1f}".format),
    ("single load p99, µs", "load_p99_us", "{:.1f}".format),
    ("CPU time, s", "cpu_s", "{:.2f}".format),
)


def print_report(document: dict[str, Any], console: Console, *, classes: bool = False) -> None:
    """Print the result of `as_document`; with `classes`, the class tables of the pools, too."""
    backends, settings = document["backends"], document["settings"]
    console.write_line(wrapped(_heading(document), paragraph_columns(), indent="  ") + "\n")
    table = Table()
    table.add_column("")
    for name, of in backends.items():
        count = of["workers"]
        table.add_column(f"{name}\n{count} + caller" if count else name, rank=1)
        if count:
            table.add_column("÷\nseq.", rank=2)
    for label, key, text in _ROWS:
        cells = []
        for of in backends.values():
            cells.append("-" if of[key] is None else text(of[key]))
            if of["workers"]:
                ratio = of["ratios"].get(key)
                cells.append("" if ratio is None else f"{ratio:.2f}")
        table.add_row(label, *cells)
    console.print(table)
    if classes:
        for name, of in backends.items():
            console.write_line(f"\nsize classes of the pool, {name}")
            console.print(class_table(of["classes"]))
    width = paragraph_columns()
    for line in _remarks(document, settings):
        bad = line.endswith(_DIFFER)
        console.write_line(wrapped(line, width, indent="  "), style="bad" if bad else None)


_DIFFER = "DIFFER"


def _heading(document: dict[str, Any]) -> str:
    source, settings = document["source"], document["settings"]
    shuffle = "" if settings["shuffle"] is None else f" shuffle {settings['shuffle']}"
    level = "" if settings["level"] is None else f" level {settings['level']}"
    size = source["pages"] * source["page_bytes"]
    return (
        f"{source['name']}: {source['pages']:,} pages of {source['page_bytes']:,} bytes "
        f"({size_text(size)})\n"
        f"{settings['algorithm']}{level}{shuffle}, stored in folios of {settings['folio_pages']} "
        f"pages, loaded in random order in batches of {settings['batch_pages']}"
    )


def _remarks(document: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    source, backends = document["source"], document["backends"]
    lines = [""]
    lines += [f"{name} are left out: {reason}" for name, reason in document["left_out"].items()]
    if source["padded_bytes"]:
        lines.append(f"the last page was padded with {source['padded_bytes']:,} zero bytes")
    if source.get("vanished_bytes"):
        lines.append(
            f"{source['vanished_bytes']:,} bytes are left out, because the process released them "
            "meanwhile"
        )
    for name, of in backends.items():
        reasons = ", ".join(
            f"{reason} {count:,}" for reason, count in of["rejected_folios"].items()
        )
        if reasons:
            limit = settings["limit_bytes"]
            within = "" if limit is None else f" within {size_text(limit)}"
            lines.append(f"{name}: folios rejected{within}: {reasons}")
    compared = {name: of["compared_pages"] for name, of in backends.items()}
    counts = set(compared.values())
    if len(counts) == 1:
        what = f"{counts.pop():,} pages"
    else:
        what = ", ".join(f"{name} {count:,}" for name, count in compared.items()) + " pages"
    if not any(compared.values()):
        lines.append("no page was kept, so there was none to compare")
    elif document["all_equal"]:
        lines.append(f"{what} compared byte for byte: all equal")
    else:
        differing = sum(of["differing_pages"] for of in backends.values())
        lines.append(f"{what} compared byte for byte: {differing:,} {_DIFFER}")
    return lines
