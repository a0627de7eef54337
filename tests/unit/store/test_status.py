"""The figures of a store: status, counters and sums over its groups, of pages and of values."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.store_pages import SIZE, ZEROS, noise, text

from batchzip import CompressedMapping, Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    """Three pages of the store's own, and two of a group, of which one is in the file."""
    with SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path) as store:
        store.store(0, [text(0), noise(1), ZEROS])
        store.load(1)
        tiles = store.group("tiles", max_bytes=99_999)
        tiles.store(5, [noise(2), noise(3)])
        tiles.writeback([5])
        yield store


def test_status_tells_what_a_store_is_and_holds(store: SwapStore) -> None:
    status = store.status()
    expected = {
        "pid": os.getpid(),
        "algorithm": repr(store.engine.codec),
        "backend": "sequential",
        "page_size": SIZE,
        "max_pool_bytes": 1 << 20,
        "accept_threshold_percent": 90,
        "pool_full": False,
        "pool_total_size": store.counters.pool_total_size,
        "compressed_bytes": store.compressed_bytes,
        "table_bytes": store.table_bytes,
        "pages": 5,
        "regions": {},
        "statistics": store.engine.statistics,
    }
    assert {name: status[name] for name in expected} == expected
    assert Path(status["backing"]).stat().st_size >= SIZE
    assert set(status) == {*expected, "backing", "groups"}


def test_status_tells_of_each_group(store: SwapStore) -> None:
    groups = store.status()["groups"]
    latencies = store.group("tiles").latencies
    assert groups["tiles"] == {
        "pages": 2,
        "pool_bytes": SIZE,
        "page_stores": 2,
        "page_loads": 0,
        "values": 0,
        "value_bytes": 0,
        "max_bytes": 99_999,
        "latencies": latencies,
    }
    own = groups[""]
    assert (own["pages"], own["page_stores"], own["page_loads"]) == (3, 3, 1)
    assert (own["max_bytes"], own["values"]) == (None, 0)


def test_values_of_a_mapping_count_as_values_wherever_they_lie(store: SwapStore) -> None:
    large, random_of = b"abcdefgh" * 20_000, random.Random(0).randbytes
    with CompressedMapping(store) as mapping:
        for number in range(3):
            mapping[number] = random_of(300)  # each is an object of its own
        for number in range(3, 5):
            mapping[number] = random_of(5 * SIZE - 500)  # in slices
        mapping[5] = large  # in chunks, which take less than a page
        assert mapping.group.writeback(1) == 1

        status = store.status()["groups"][mapping.group.name]
        assert status["values"] == len(mapping) == 6
        assert status["pages"] == 0
        assert status["value_bytes"] == 3 * 300 + 2 * (5 * SIZE - 500) + len(large)
        counters = mapping.group.counters
        assert (counters.stored_values, counters.backed_values) == (2 + 2 * 5 + 1, 1)
        mapping.group.writeback(1 << 20)
        counters = mapping.group.counters
        assert (counters.stored_values, counters.backed_values) == (0, 3 + 2 * 5 + 1)
        assert store.counters.backed_values == 14
        assert store.counters.stored_values == 0


def test_values_of_a_codec_in_python_count_as_pages() -> None:
    large = b"abcdefgh" * 20_000
    with (
        Engine("deflate", backend="sequential") as engine,
        SwapStore(engine) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["key"] = large
        status = store.status()["groups"][mapping.group.name]
        assert (status["values"], status["value_bytes"]) == (1, 0)
        assert status["pages"] == -(-len(large) // engine.page_size)


def test_a_store_s_counters_are_the_sums_over_its_groups(store: SwapStore) -> None:
    by_group = store.counters_by_group()
    assert set(by_group) == {"", "tiles"}
    assert (by_group[""].stored_pages, by_group["tiles"].stored_pages) == (3, 1)
    for name in ("stored_pages", "stored_incompressible_pages", "backed_pages"):
        total = sum(getattr(counters, name) for counters in by_group.values())
        assert getattr(store.counters, name) == total
    assert (store.counters.same_filled_pages, store.counters.backed_pages) == (1, 1)
    assert by_group["tiles"].pool_total_size == SIZE
    assert by_group["tiles"].backing_file_size == by_group[""].backing_file_size == 0
    assert store.counters.backing_file_size == SIZE


def test_stored_bytes_are_those_in_the_pool_and_in_the_file(store: SwapStore) -> None:
    tiles = store.group("tiles")
    assert tiles.stored_bytes == 2 * SIZE
    tiles.writeback(1)
    assert tiles.stored_bytes == 2 * SIZE
    tiles.invalidate(6)
    assert tiles.stored_bytes == SIZE


def test_table_bytes_are_those_of_every_group_and_of_the_pool(store: SwapStore) -> None:
    tiles = store.group("tiles")
    before, own = store.table_bytes, tiles.table_bytes
    assert before > own > 0
    tiles.store(0, [ZEROS] * 50_000)
    assert store.table_bytes - before == tiles.table_bytes - own > 50_000
