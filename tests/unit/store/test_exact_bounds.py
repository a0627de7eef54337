"""Limits and counts of a store, exactly at their bounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import pytest
from support.entries import flip
from support.faulty_file import FaultyFile

from batchzip import Engine, PageNotStored, Recompression, StoreRejected, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 4096


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store:
        yield store


@pytest.mark.parametrize(("over", "moved"), [(0, 0), (1, 1)])
def test_a_group_one_byte_over_its_limit_writes_back_one_page(
    store: SwapStore, over: int, moved: int
) -> None:
    store.accept_threshold_percent = 100
    group = store.group("one")
    group.store(0, [noise(number) for number in range(3)])
    group.max_bytes = group.stored_bytes - over
    assert store.shrink() == moved
    assert group.counters.backed_pages == moved


def test_a_group_of_one_page_over_its_limit_writes_it_back(store: SwapStore) -> None:
    group = store.group("one")
    group.store(0, noise(0))
    group.max_bytes = 0
    assert store.shrink() == 1
    assert group.load(0) == noise(0)


@pytest.mark.parametrize("backed", [False, True])
def test_a_store_without_waste_has_nothing_to_give_back(
    engine: Engine, tmp_path: Path, *, backed: bool
) -> None:
    with SwapStore(engine, backing=tmp_path if backed else None) as store:
        store.store(0, noise(0))
        store.compact()
        assert store.compact() == 0


def test_space_of_pages_that_are_removed_is_given_back_at_once(engine: Engine) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        store.store(0, [noise(number) for number in range(300)])
        assert store.writeback(300) == 300
        before = file.calls["discard"] + file.calls["truncate"]
        store.invalidate(0, 300)
        assert file.calls["discard"] + file.calls["truncate"] > before


def test_an_index_that_is_given_twice_is_written_back_once(engine: Engine) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file) as store:
        store.store(0, [noise(0), noise(1)])
        assert store.writeback([1, 0, 1, 1]) == 2
    assert sum(end - start for start, end in file.ranges) == 2 * SIZE


def test_shrinking_writes_back_no_more_than_the_limit_asks(store: SwapStore) -> None:
    group = store.group("one")
    group.store(0, [noise(number) for number in range(200)])
    page = group.stored_bytes // 200
    group.max_bytes = 100 * page
    assert store.shrink() in {110, 111}  # down to the threshold of 90 %, and perhaps one more
    assert group.counters.stored_pages in {89, 90}


def test_as_many_pages_are_written_back_as_were_asked_for(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False, max_batch=8) as store:
        store.store(0, [noise(number) for number in range(40)])
        assert store.writeback(13) == 13  # a batch, and a part of one
        assert store.counters.backed_pages == 13
        assert store.writeback(0) == 0
        assert store.writeback(100) == 27


def test_a_page_larger_than_any_is_never_recompressed(store: SwapStore) -> None:
    store.store(0, noise(0))  # raw: it takes a whole page
    assert store.recompress("zstd", min_length=SIZE).pages == 1
    assert store.recompress("zstd", min_length=SIZE + 1).pages == 0
    assert store.recompress("zstd", min_length=1 << 40).pages == 0


@pytest.mark.parametrize("index", [-1, -(1 << 70), 1 << 70])
def test_an_index_that_none_has_is_not_stored_for_asyncio_either(
    store: SwapStore, index: int
) -> None:
    with pytest.raises((PageNotStored, ValueError)) as plain:
        store.load(index)
    with pytest.raises(plain.type):
        asyncio.run(store.aload(index))
    assert index not in store


def test_a_threshold_of_all_accepts_again_as_soon_as_it_is_below_the_limit(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE, accept_threshold_percent=100) as store:
        assert store.accept_threshold_percent == 100
        with contextlib.suppress(StoreRejected):
            for index in range(17):
                store.store(index, noise(index))
        assert store.counters.pool_limit_hit == 1
        store.invalidate(0)
        store.compact()
        store.store(0, noise(0))
        assert store.load(0) == noise(0)


def test_a_store_has_zswap_s_threshold_unless_it_is_told_another(store: SwapStore) -> None:
    assert store.accept_threshold_percent == 90
    assert store.status()["accept_threshold_percent"] == 90


def test_where_every_page_is_damaged_recompression_keeps_and_saves_nothing(
    store: SwapStore,
) -> None:
    store.store(0, bytes(range(256)) * 16)
    flip(store, 0)
    assert store.recompress("zstd") == Recompression(1, 0, 0)
    assert store.counters.decompress_fail == 1
