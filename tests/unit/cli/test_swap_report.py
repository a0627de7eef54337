"""The report of `batchzip swap` for people: what it says of a result whose figures are known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from batchzip.cli.class_table import class_table
from batchzip.cli.report import print_report
from batchzip.terminal.console import as_text, make_console

ALONE: dict[str, Any] = {
    "workers": 0,
    "stored_pages": 1500,
    "same_filled_pages": 200,
    "incompressible_pages": 20,
    "rejected_pages": 0,
    "rejected_folios": {},
    "compressed_bytes": 3 << 20,
    "compression_ratio": 1.95,
    "pool_overhead": 1.0123,
    "store_mb_per_s": 1234.4,
    "store_us_per_page": 3.316,
    "load_mb_per_s": 2000.0,
    "load_us_per_page": 2.0484,
    "load_p50_us": 5.04,
    "load_p99_us": None,
    "cpu_s": 0.256,
    "compared_pages": 1500,
    "differing_pages": 0,
    "ratios": {"store_mb_per_s": 1.0},
    "classes": [
        {"size": 32, "zspages": 1, "room": 128, "objects": 100, "bytes": 4096, "freeable": 896}
    ],
}
WORKERS = {
    **ALONE,
    "workers": 3,
    "store_mb_per_s": 2468.8,
    "ratios": {"store_mb_per_s": 2.0, "cpu_s": 1.056, "load_p99_us": None},
}
DOCUMENT: dict[str, Any] = {
    "source": {
        "name": "dump.bin",
        "pages": 1500,
        "page_bytes": 4096,
        "padded_bytes": 0,
    },
    "settings": {
        "algorithm": "zstd",
        "level": None,
        "shuffle": None,
        "batch_pages": 256,
        "folio_pages": 16,
        "limit_bytes": None,
    },
    "all_equal": True,
    "backends": {"sequential": ALONE, "workers": WORKERS},
    "left_out": {},
}


def printed(*, classes: bool = False, **changes: dict[str, Any]) -> list[str]:
    """Return the report on the document with these changes of its parts."""
    document = copy.deepcopy(DOCUMENT)
    for part, change in changes.items():
        if part in document["backends"]:
            document["backends"][part].update(change)
        else:
            document[part].update(change)
    document["all_equal"] = not any(of["differing_pages"] for of in document["backends"].values())
    console = make_console()
    with console.capture() as shown:
        print_report(document, console, classes=classes)
    return shown.get().splitlines()


WHOLE = """\
dump.bin: 1,500 pages of 4,096 bytes (5.9 MiB)
zstd, stored in folios of 16 pages, loaded in random order in batches of 256

                                    workers     ÷
                     sequential  3 + caller  seq.
pages kept                1,500       1,500
  same-filled               200         200
  incompressible             20          20
pages rejected                0           0
compressed              3.0 MiB     3.0 MiB
compression ratio          1.95        1.95
pool: held ÷ stored       1.012       1.012
store, MB/s               1,234       2,469  2.00
store, µs per page         3.32        3.32
load, MB/s                2,000       2,000
load, µs per page          2.05        2.05
single load p50, µs         5.0         5.0
single load p99, µs           -           -
CPU time, s                0.26        0.26  1.06

size classes of the pool, sequential
object bytes  zspages  room  objects  bytes  freeable
          32        1   128      100  4,096       896
         all        1   128      100  4,096       896

size classes of the pool, workers
object bytes  zspages  room  objects  bytes  freeable
          32        1   128      100  4,096       896
         all        1   128      100  4,096       896

1,500 pages compared byte for byte: all equal
"""


def test_every_figure_is_in_its_place() -> None:
    assert printed(classes=True) == WHOLE.splitlines()


def test_ratios_give_way_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    lines = printed()
    table = lines.index("") + 1
    assert lines[table : table + 3] == [
        "                                    workers",
        "                     sequential  3 + caller",
        "pages kept                1,500       1,500",
    ]
    assert "left out for lack of room: ÷ seq." in lines


def test_the_heading_tells_the_settings_and_the_last_lines_what_was_left_out() -> None:
    shown = printed(
        source={"padded_bytes": 1000, "vanished_bytes": 8192},
        settings={"level": 3, "shuffle": "f4", "limit_bytes": 1 << 20},
        workers={"rejected_folios": {"pool limit": 1200, "no memory": 2}, "compared_pages": 1400},
        left_out={"threads": "zstd runs in Python here"},
    )
    assert shown[1].startswith("zstd level 3 shuffle f4, stored in folios of 16 pages, loaded")
    assert shown[-6:] == [
        "",
        "threads are left out: zstd runs in Python here",
        "the last page was padded with 1,000 zero bytes",
        "8,192 bytes are left out, because the process released them meanwhile",
        "workers: folios rejected within 1.0 MiB: pool limit 1,200, no memory 2",
        "sequential 1,500, workers 1,400 pages compared byte for byte: all equal",
    ]


@pytest.mark.parametrize(
    ("alone", "workers", "said"),
    [
        ({}, {"differing_pages": 3}, "1,500 pages compared byte for byte: 3 DIFFER"),
        ({"differing_pages": 1000}, {"differing_pages": 3}, ": 1,003 DIFFER"),
        ({"compared_pages": 0}, {}, "sequential 0, workers 1,500 pages compared"),
        (
            {"compared_pages": 0},
            {"compared_pages": 0},
            "no page was kept, so there was none to compare",
        ),
    ],
)
def test_the_last_line_is_what_was_compared(
    alone: dict[str, Any], workers: dict[str, Any], said: str
) -> None:
    assert said in printed(sequential=alone, workers=workers)[-1]


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (80, "object bytes zspages room objects bytes freeable"),
        (49, "object bytes zspages objects bytes freeable"),
        (41, "object bytes objects bytes freeable"),
        (32, "object bytes bytes freeable"),
        (25, "object bytes bytes"),
        (15, "object bytes"),
    ],
)
def test_columns_of_the_class_table_are_left_out_in_order_of_their_worth(
    width: int, headings: str
) -> None:
    first = as_text(class_table(ALONE["classes"]), width).splitlines()[0]
    assert " ".join(first.split()) == headings
