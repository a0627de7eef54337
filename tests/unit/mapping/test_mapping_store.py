"""A mapping beside others in its store: full, damaged or closed stores leave the old value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.entries import flip
from support.sample_values import IN_CHUNKS_OR_PAGES
from support.store_pages import noise, text

from batchzip import (
    BadArgument,
    CompressedMapping,
    CorruptPage,
    Engine,
    StoreRejected,
    SwapStore,
)
from batchzip.core.gather import gather
from batchzip.core.indices import IndexSpace
from batchzip.core.table import IN_POOL

if TYPE_CHECKING:
    from pathlib import Path

    from batchzip.core.indices import IndexReservation

MOST = 64 << 10
"""Bytes of a value that is compressed in one call; longer ones lie in chunks, or on pages."""


# The store it lies in


def test_others_in_the_store_are_not_touched(store: SwapStore) -> None:
    store.store(0, text(0))
    one, two = CompressedMapping(store), CompressedMapping(store)
    named = CompressedMapping(store, name="named", max_bytes=1 << 20)
    for number, each in enumerate((one, two, named)):
        each["key"] = b"%d" % number
    assert [each["key"] for each in (one, two, named)] == [b"0", b"1", b"2"]
    assert store.load(0) == text(0)
    assert named.group.max_bytes == 1 << 20
    with pytest.raises(BadArgument, match="already has a group 'named'"):
        CompressedMapping(store, name="named")


@IN_CHUNKS_OR_PAGES
def test_cold_values_go_to_the_backing_file_and_come_from_there(
    engine: Engine, tmp_path: Path
) -> None:
    values = {f"key {n}": noise(n, MOST + 1000) for n in range(30)}
    with (
        SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping.update(values)
        counters = mapping.group.counters
        assert counters.backed_pages + counters.backed_values > 0
        assert mapping.cbytes >= 30 * MOST > store.counters.pool_total_size
        assert dict(mapping) == values
        mapping.group.writeback(600)
        assert mapping.group.counters.stored_pages == 0
        assert mapping.group.counters.stored_values == 0
        assert dict(mapping) == values
        mapping.check_invariants()


@IN_CHUNKS_OR_PAGES
def test_a_value_that_is_larger_than_the_pool_goes_to_the_backing_file(
    engine: Engine, tmp_path: Path
) -> None:
    with (
        SwapStore(engine, max_pool_bytes=1 << 20, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["old"] = text(1, 100_000)
        mapping["large"] = noise(1, 4 << 20)
        assert mapping["large"] == noise(1, 4 << 20)
        assert mapping["old"] == text(1, 100_000)
        assert store.counters.pool_total_size <= 1 << 20
        mapping.check_invariants()


@IN_CHUNKS_OR_PAGES
@pytest.mark.parametrize("limits", [(1 << 20, None), (None, 1 << 20)], ids=["store", "mapping"])
def test_a_value_that_is_rejected_leaves_the_old_one(
    engine: Engine, limits: tuple[int | None, int | None]
) -> None:
    with (
        SwapStore(engine, max_pool_bytes=limits[0]) as store,
        CompressedMapping(store, max_bytes=limits[1]) as mapping,
    ):
        mapping["old"] = text(1, 50_000)
        for key in ("old", "new"):
            with pytest.raises(StoreRejected) as rejection:
                mapping[key] = noise(1, 4 << 20)
            mapping.check_invariants()
            assert rejection.value.reason == "pool_limit_hit"
            assert dict(mapping) == {"old": text(1, 50_000)}
        with pytest.raises(StoreRejected):
            mapping.setdefault("new", noise(1, 4 << 20))
        assert list(mapping) == ["old"]


@IN_CHUNKS_OR_PAGES
def test_a_value_of_several_buffers_that_is_rejected_halfway_leaves_the_old_one(
    engine: Engine,
) -> None:
    with (
        SwapStore(engine, max_pool_bytes=1 << 20) as store,
        CompressedMapping(store, serializer="pickle") as mapping,
    ):
        mapping["key"] = "old"
        random = np.random.default_rng(1)
        with pytest.raises(StoreRejected):
            mapping["key"] = [random.bytes(100), *random.random((20, 1 << 14))]
        mapping.check_invariants()
        assert mapping["key"] == "old"


@IN_CHUNKS_OR_PAGES
def test_a_full_backing_file_leaves_the_old_value(engine: Engine, tmp_path: Path) -> None:
    with (
        SwapStore(
            engine, max_pool_bytes=1 << 20, backing=tmp_path, max_backing_bytes=1 << 20
        ) as store,
        CompressedMapping(store) as mapping,
    ):
        mapping["key"] = b"old"
        with pytest.raises(StoreRejected) as rejection:
            mapping["key"] = noise(1, 8 << 20)
        assert rejection.value.reason == "reject_reclaim_fail"
        assert mapping["key"] == b"old"
        mapping.check_invariants()


@IN_CHUNKS_OR_PAGES
def test_a_damaged_value_is_named_and_others_stay_readable(mapping: CompressedMapping) -> None:
    mapping["good"] = text(1, 100_000)
    mapping["bad"] = noise(2, 100_000)
    stored = np.frombuffer(mapping.group._entries.choose(IN_POOL), np.uint64)
    gathered = gather(mapping.group._entries, stored.view(np.int64))
    flip(mapping.group, int(stored[max(range(len(stored)), key=gathered.length)]))
    for call in (mapping.__getitem__, mapping.pop):
        with pytest.raises(CorruptPage) as damage:
            call("bad")
        assert "key 'bad'" in str(damage.value)
    assert mapping["good"] == text(1, 100_000)
    assert "bad" in mapping
    del mapping["bad"], damage  # whose frames hold the value


# Indices


@pytest.mark.parametrize("engine", ["deflate"], indirect=True)
def test_indices_of_values_that_are_gone_are_used_again(mapping: CompressedMapping) -> None:
    for turn in range(50):
        for length in (1, 5000, 20_000, MOST + 1, MOST + 9000, 300):
            mapping["key", length] = noise(turn, length)
        if turn % 3:
            del mapping["key", 5000]
            del mapping["key", MOST + 1]
    mapping.check_invariants()
    assert mapping._pages.space.end < 120


def test_neighbours_that_are_free_are_joined(store: SwapStore) -> None:
    space = IndexSpace(store.group("numbered")._entries)
    held = [space.reserve(1) for _ in range(1000)]
    assert space.end == 1000
    held.clear()
    held.extend(space.reserve(length) for length in (100, 700, 200))
    assert space.end == 1000
    space.check_invariants()


def test_indices_are_not_given_out_while_anybody_holds_them(store: SwapStore) -> None:
    group = store.group("numbered")
    space = IndexSpace(group._entries)
    first: IndexReservation | None = space.reserve(3)
    reader = first
    group.store(0, [noise(at) for at in range(6)])
    first = None
    assert space.reserve(3).first == 3
    assert [at in group for at in range(6)] == [True] * 3 + [False] * 3
    del reader
    assert len(group) == 0
    assert first is None
