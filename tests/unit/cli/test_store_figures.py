"""What `batchzip top` says of a store whose figures are known, to the last character."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from batchzip.cli.look import print_look
from batchzip.cli.snapshot import Snapshot
from batchzip.cli.store_look import store_look
from batchzip.core.latency import BOUNDS_S
from batchzip.pool.class_use import ClassUse
from batchzip.store.counters import Counters
from batchzip.store.latency import Latency
from batchzip.terminal.console import make_console
from batchzip.terminal.table import fitting

MIB = 1 << 20


def timed(count: int, bucket: int) -> Latency:
    """Return calls that all fell into one bucket, each as long as its upper bound."""
    calls = [0] * (len(BOUNDS_S) + 1)
    calls[bucket] = count
    return Latency(tuple(calls), count * BOUNDS_S[bucket])


def group(pages: int, stores: int, loads: int, **more: Any) -> dict[str, Any]:
    figures = {
        "pages": pages,
        "pool_bytes": pages * 1024,
        "max_bytes": None,
        "page_stores": stores,
        "page_loads": loads,
        "value_bytes": 0,
        "latencies": {"load": timed(loads, 2), "store": timed(1, 3), "put": Latency()},
    }
    return {**figures, **more}


def region(minor: int, missing: int, ahead: int) -> dict[str, Any]:
    return {
        "pages": 1024,
        "budget_pages": 512,
        "resident_pages": 256,
        "faults_minor": minor,
        "faults_missing": missing,
        "readahead_hits": ahead,
        "latency": timed(minor + missing, 4),
    }


def counters(**given: int) -> Counters:
    return Counters(**{field.name: given.get(field.name, 0) for field in fields(Counters)})


def worker(pid: int, pages: int, busy_s: float) -> Any:
    return SimpleNamespace(pid=pid, pages=pages, busy_s=busy_s)


def status(**given: Any) -> dict[str, Any]:
    figures = {
        "pid": 4711,
        "algorithm": "Lz4(acceleration=1)",
        "backend": "workers",
        "page_size": 4096,
        "pool_total_size": 3 * MIB,
        "max_pool_bytes": 4 * MIB,
        "pool_full": False,
        "accept_threshold_percent": 90,
        "compressed_bytes": 2 * MIB,
        "backing": "",
        "groups": {
            "": group(100, 1101, 500),
            "tiles": group(900, 2000, 10, max_bytes=MIB),
            "idle": group(0, 7, 1),
        },
        "statistics": SimpleNamespace(workers=[worker(21, 12, 3.0), worker(22, 1234, 9.5)]),
        "regions": {"arrays": region(60, 20, 20)},
    }
    return {**figures, **given}


BEFORE = Snapshot(
    100.0,
    "/proc/4711/fd/9",
    counters(stored_pages=1000, pool_limit_hit=4),
    status(
        groups={"": group(100, 100, 400), "tiles": group(800, 1900, 9)},
        statistics=SimpleNamespace(workers=[worker(21, 2, 2.0)]),
        regions={"arrays": region(20, 10, 10)},
    ),
    [],
)
NOW = Snapshot(
    102.0,
    "/proc/4711/fd/9",
    counters(
        stored_pages=1024,
        same_filled_pages=10,
        stored_incompressible_pages=1200,
        pool_limit_hit=10,
        written_back_pages=6,
    ),
    status(),
    [ClassUse(32, 1, 128, 100, 4096, 896), ClassUse(2048, 500, 1000, 1000, 2048000, 0)],
)


def drawn(now: Snapshot, before: Snapshot | None) -> list[str]:
    console = make_console()
    with console.capture() as shown:
        print_look(store_look(now, before), console, most=None)
    return shown.get().splitlines()


def facts(**given: Any) -> dict[str, str]:
    """Return the facts of a store with these counters and this status."""
    names = {field.name for field in fields(Counters)}
    counted = {name: value for name, value in given.items() if name in names - {"pool_total_size"}}
    other = {name: value for name, value in given.items() if name not in counted}
    now = replace(NOW, counters=counters(**counted), status=status(**other))
    return dict(store_look(now, None).facts)


SINCE = """\
process 4711: Lz4(acceleration=1) on workers, pages of 4,096 bytes
store   /proc/4711/fd/9
pool    3.0 MiB of 4.0 MiB (75%)
pages   1,024 in memory (4.0 MiB), ratio 2.00
        10 same-filled, 1,200 incompressible

pages                         per second  total
stored                               554  3,108
loaded                                51    511
written back                           3      6
rejected: pool at its limit            3     10
rejected: no memory                    0      0
rejected: compresses poorly            0      0
rejected: compression failed           0      0
rejected: writeback failed             0      0
damaged when loaded                    0      0

operation      p50      p99     mean  timed calls
load        768 ns  1.02 µs  1.02 µs          102
store      1.54 µs  2.04 µs  2.05 µs            1

group   pages  in the pool    limit  stored/s  loaded/s
tiles     900    900.0 KiB  1.0 MiB        50         0
(none)    100    100.0 KiB        -       500        50
groups left out: 1 empty

worker  load  pages
21       50%     12
22         -  1,234

region     size   budget  resident  faults/s  hits      p50      p90      p99
arrays  4.0 MiB  2.0 MiB   1.0 MiB        25   83%  3.07 µs  3.89 µs  4.08 µs

object bytes  zspages   room  objects      bytes  freeable
          32        1    128      100      4,096       896
       2,048      500  1,000    1,000  2,048,000         0
         all      501  1,128    1,100  2,052,096       896
"""

EVER = [
    "written back                      6",
    "load        768 ns  1.02 µs  1.02 µs          511",
    "group   pages  in the pool    limit",
    "tiles     900    900.0 KiB  1.0 MiB",
    "worker  pages",
    "22      1,234",
    "arrays  4.0 MiB  2.0 MiB   1.0 MiB   80%  3.07 µs  3.89 µs  4.08 µs",
]


def test_every_figure_is_in_its_place() -> None:
    assert drawn(NOW, BEFORE) == SINCE.splitlines()


def test_a_first_look_has_no_rates() -> None:
    first = drawn(NOW, None)
    assert [line for line in EVER if line not in first] == []
    assert not re.search("per second|/s", "\n".join(first))


@pytest.mark.parametrize(
    ("figures", "shown"),
    [
        ({}, "3.0 MiB of 4.0 MiB (75%)"),
        ({"pool_full": True}, "3.0 MiB of 4.0 MiB (75%), full until 90%"),
        ({"max_pool_bytes": None}, "3.0 MiB, no limit"),
        ({"max_pool_bytes": 0}, "limit 0"),
        ({"max_pool_bytes": 0, "pool_full": True}, "limit 0, full until 90%"),
    ],
)
def test_the_pool_is_told_with_its_limit(figures: dict[str, Any], shown: str) -> None:
    assert facts(**figures)["pool"] == shown


@pytest.mark.parametrize(("limit", "filled"), [(4 * MIB, 0.75), (None, None), (0, None)])
def test_the_bar_is_filled_as_the_pool_is(limit: int | None, filled: float | None) -> None:
    now = replace(NOW, status=status(max_pool_bytes=limit))
    assert store_look(now, None).filled == filled


@pytest.mark.parametrize(
    ("figures", "ratio"),
    [
        ({"stored_pages": 256}, ", ratio 0.50"),
        ({"groups": {name: group(1, 1, 1, value_bytes=MIB) for name in "ab"}}, ", ratio 1.00"),
        ({"compressed_bytes": 0}, ""),
        ({"backed_values": 1}, ""),
    ],
)
def test_the_ratio_is_told_where_all_compressed_bytes_are_known(
    figures: dict[str, Any], ratio: str
) -> None:
    assert facts(**figures)["pages"].partition(")")[2] == ratio


def test_values_and_the_file_are_told_where_there_are_any() -> None:
    assert not {"values", "file"} & facts().keys()
    for stored, backed in ((5, 1200), (5, 0), (0, 1200)):
        shown = facts(stored_values=stored, backed_values=backed)["values"]
        assert shown == f"{stored} in memory, {backed:,} in the file"
    assert facts(backed_pages=5000, backing_file_size=20480)["file"] == "5,000 pages in 20.0 KiB"
    named = facts(backing="/proc/1/fd/3", backed_pages=2)
    assert named["file"] == "2 pages in 0 Bytes: /proc/1/fd/3"
    assert facts(backing="/proc/1/fd/3")["file"].startswith("0 pages")


@pytest.mark.parametrize(
    ("section", "left_out"),
    [
        (0, ["total", "per second"]),
        (1, ["timed calls", "mean", "p99", "p50"]),
        (2, ["limit", "loaded/s", "stored/s", "pages"]),
        (3, ["pages", "load"]),
        (4, ["p90", "p50", "hits", "p99", "size", "budget", "faults/s", "resident"]),
        (5, ["room", "zspages", "objects", "freeable", "bytes"]),
    ],
)
def test_columns_are_left_out_in_order_of_their_worth(section: int, left_out: list[str]) -> None:
    columns = store_look(NOW, BEFORE).sections[section].columns
    ranks = [column.rank for column in columns]
    gone: list[int] = []
    for room in range(120, 0, -1):
        shown = fitting([10] * len(columns), ranks, room)
        gone += [at for at in range(len(columns)) if at not in {*shown, *gone}]
    assert [columns[at].heading for at in gone] == left_out
