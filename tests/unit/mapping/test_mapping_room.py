"""What a mapping does at a limit: it says why, makes as much room as it needs, and no more."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support.store_pages import noise

from batchzip import CompressedMapping, Engine, StoreRejected, SwapStore
from batchzip.core.memory import fail_allocation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIB = 1 << 10
LIMIT = 256 * KIB


def fill(mapping: CompressedMapping, count: int = 1000) -> StoreRejected:
    """Store values of 1000 bytes until one is rejected. Return the error."""
    with pytest.raises(StoreRejected) as rejected:
        mapping.update((number, noise(number, 1000)) for number in range(count))
    return rejected.value


def test_the_limit_of_the_mapping_is_named_and_counted_once(store: SwapStore) -> None:
    with CompressedMapping(store, name="rows", max_bytes=LIMIT) as mapping:
        error = fill(mapping)
        assert error.reason == "pool_limit_hit"
        assert f"does not fit in the {LIMIT} bytes of 'rows'" in str(error)
        assert mapping.group.counters.pool_limit_hit == 1
        assert LIMIT - 1100 < mapping.stats().pool_bytes <= LIMIT


def test_the_limit_of_the_store_is_named_and_counted_once(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=LIMIT) as store, CompressedMapping(store) as mapping:
        mapping.update({number: noise(number, 1000) for number in range(200)})
        with pytest.raises(StoreRejected) as rejected:
            mapping["large"] = noise(1, 60 * KIB)
        assert rejected.value.reason == "pool_limit_hit"
        assert f"the store's pool is at its limit of {LIMIT} bytes" in str(rejected.value)
        assert "accepted again below 90 %" in str(rejected.value)
        assert mapping.group.counters.pool_limit_hit == 1
        mapping["small"] = b"below nine tenths"


def test_a_value_that_the_system_has_no_memory_for_is_rejected_for_that(store: SwapStore) -> None:
    with CompressedMapping(store, max_bytes=LIMIT) as mapping:
        mapping["key"] = b"old"
        fail_allocation(1)
        try:
            with pytest.raises(StoreRejected, match="no memory for the value") as rejected:
                mapping["key"] = noise(1, 60 * KIB)
        finally:
            fail_allocation(0)
        assert rejected.value.reason == "reject_alloc_fail"
        assert mapping.group.counters.reject_alloc_fail == 1
        assert mapping.group.counters.pool_limit_hit == 0
        assert mapping["key"] == b"old"


@pytest.mark.parametrize("whose", ["mapping", "store"])
def test_after_a_rejection_values_are_accepted_again_below_nine_tenths(
    engine: Engine, whose: str
) -> None:
    store_limit, limit = (LIMIT, None) if whose == "store" else (None, LIMIT)
    with (
        SwapStore(engine, max_pool_bytes=store_limit) as store,
        CompressedMapping(store, max_bytes=limit) as mapping,
    ):
        fill(mapping)
        refused = 0
        for key in list(mapping):
            del mapping[key]
            held = mapping.stats().pool_bytes
            try:
                mapping["tiny"] = b"a"
                break
            except StoreRejected:
                refused += 1
        assert refused > 10
        assert 0.85 * LIMIT < held <= 0.9 * LIMIT
        mapping["another"] = b"b"


def test_a_pool_with_gaps_is_compacted_before_a_value_is_rejected(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=LIMIT) as store, CompressedMapping(store) as mapping:
        mapping.update({number: noise(number, 1000) for number in range(240)})
        for number in range(240):
            if number % 3:
                del mapping[number]
        mapping.update({(number,): noise(number, 3000) for number in range(40)})
        assert len(mapping) == 120
        store.check_invariants()


@pytest.mark.slow
def test_a_cache_keeps_as_much_as_fits(store: SwapStore) -> None:
    gone: list[Any] = []
    most = 0

    def note(key: Any, _: bytes) -> None:
        nonlocal most
        gone.append(key)
        most = max(most, mapping.stats().pool_bytes)

    for on_evict in (None, note):
        with CompressedMapping(
            store, max_bytes=LIMIT, on_full="evict", on_evict=on_evict
        ) as mapping:
            for start in range(0, 2000, 500):
                mapping.set_many((n, noise(n, 1000)) for n in range(start, start + 500))
            assert LIMIT - 1100 < mapping.stats().pool_bytes <= LIMIT
            assert mapping.stats().evictions == 2000 - len(mapping)
            mapping["alone"] = noise(1, LIMIT + 1000)  # a value above the limit is evicted itself
            assert len(mapping) == 0
    assert len(gone) == 2001
    assert gone[:1000] == list(range(1000))
    # Beside the limit, the pool holds 64 new values at most, and the one that is above the limit.
    assert most <= max(LIMIT + 64 * 1100, 2 * LIMIT + 3000)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1000, 70_000])
def test_a_cache_in_a_full_store_keeps_most_of_what_fits(engine: Engine, length: int) -> None:
    limit = 1024 * KIB
    with (
        SwapStore(engine, max_pool_bytes=limit) as store,
        CompressedMapping(store, on_full="evict") as mapping,
    ):
        for number in range(3 * limit // length):
            mapping[number] = noise(number, length)
            assert number in mapping
        assert mapping.stats().pool_bytes > 0.8 * limit
        assert mapping.stats().evictions > 0
        newest = 3 * limit // length - 1
        assert list(mapping)[-1] == newest
        with pytest.raises(StoreRejected):
            mapping["huge"] = noise(1, 2 * limit)
        assert mapping.stats().values == 0  # all of it was tried


def test_a_cache_that_has_nothing_cannot_make_room(engine: Engine) -> None:
    with (
        SwapStore(engine, max_pool_bytes=64 * KIB) as store,
        CompressedMapping(store, on_full="evict") as mapping,
    ):
        other = store.group("other")
        other.store(0, [noise(number) for number in range(15)])
        with pytest.raises(StoreRejected, match="the store's pool is at its limit") as rejected:
            mapping["key"] = noise(1, 60 * KIB)
        assert "make the mapping with on_full='evict'" not in str(rejected.value)
        assert len(other) == 15


@pytest.fixture
def spilling(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store:
        yield store
        store.check_invariants()


@pytest.mark.slow
def test_spilling_goes_down_to_nine_tenths_of_the_limit(spilling: SwapStore) -> None:
    with CompressedMapping(spilling, max_bytes=LIMIT) as mapping:
        before = 0
        values = {number: noise(number, 1000) for number in range(1000)}
        for key, value in values.items():
            mapping[key] = value
            held = mapping.stats().pool_bytes
            assert held <= LIMIT
            if held < before:
                assert 0.85 * LIMIT < held <= 0.9 * LIMIT
            before = held
        assert mapping.stats().file_bytes + before >= 1_000_000
        assert dict(mapping) == values


@pytest.mark.slow
def test_spilling_in_a_full_store_keeps_all_values(engine: Engine, tmp_path: Path) -> None:
    with (
        SwapStore(engine, max_pool_bytes=LIMIT, backing=tmp_path) as store,
        CompressedMapping(store) as mapping,
    ):
        values = {number: noise(number, 1000) for number in range(1500)}
        for key, value in values.items():
            mapping[key] = value
        assert dict(mapping) == values
        assert mapping.stats().evictions == 0
        assert mapping.stats().pool_bytes > 0


def test_a_new_limit_holds_at_once(spilling: SwapStore) -> None:
    values = {number: noise(number, 1000) for number in range(200)}
    with CompressedMapping(spilling) as mapping:
        mapping.update(values)
        assert (mapping.max_bytes, mapping.group.max_bytes) == (None, None)
        mapping.max_bytes = 50_000
        assert (mapping.max_bytes, mapping.group.max_bytes) == (50_000, 50_000)
        assert 40_000 < mapping.stats().pool_bytes <= 45_000
        assert dict(mapping) == values
    with CompressedMapping(spilling, on_full="evict", max_bytes=1 << 20) as cache:
        assert cache.group.max_bytes is None  # the group itself would reject values
        cache.update(values)
        cache.max_bytes = 50_000
        assert cache.group.max_bytes is None
        assert 48_000 < cache.stats().pool_bytes <= 50_000
    with CompressedMapping(spilling, on_full="raise") as mapping:
        mapping.update(values)
        mapping.max_bytes = 50_000
        assert len(mapping) == 200
        with pytest.raises(StoreRejected):
            mapping["more"] = b"more"
        mapping.max_bytes = None
        mapping["more"] = b"more"


def test_evicted_keys_that_are_objects_are_forgotten_without_a_callback(store: SwapStore) -> None:
    with CompressedMapping(store, max_bytes=20_000, on_full="evict") as mapping:
        for number in range(100):
            mapping[number, 0.5] = noise(number, 1000)
        kept = list(mapping)
        assert 15 < len(kept) < 21
        assert kept == [(number, 0.5) for number in range(100 - len(kept), 100)]
        assert mapping.stats().evictions == 100 - len(kept)
        assert len(mapping._keys._objects) == len(kept)


def test_room_is_made_64_times_for_one_value_and_the_size_grows(engine: Engine) -> None:
    with (
        SwapStore(engine, max_pool_bytes=LIMIT) as store,
        CompressedMapping(store, on_full="evict") as mapping,
    ):
        mapping.update((number, noise(number, 100)) for number in range(2000))
        held = [mapping.stats().pool_bytes]
        for tries in (0, 0, 1, 2):
            assert mapping._room.make(-errno.ENOSPC, tries, mapping._take)
            held.append(mapping.stats().pool_bytes)
        gone = [before - after for before, after in pairwise(held)]
        assert gone == pytest.approx([8192, 8192, 16384, 32768], abs=200)
        assert mapping._room.make(-errno.ENOSPC, 63, mapping._take)
        mapping["more"] = b"more"
        assert not mapping._room.make(-errno.ENOSPC, 64, mapping._take)
        assert not mapping._room.make(-errno.ENOMEM, 0, mapping._take)
        assert list(mapping) == ["more"]


@pytest.mark.parametrize(("limit", "slack"), [(None, 0), (1, 1), (63, 1), (LIMIT, LIMIT // 64)])
def test_a_batch_stores_a_64th_of_the_limit_between_two_looks_at_it(
    store: SwapStore, limit: int | None, slack: int
) -> None:
    with CompressedMapping(store, max_bytes=limit, on_full="evict") as mapping:
        assert mapping._room.slack == slack
        assert mapping._room.hard_limit == 0
    with CompressedMapping(store, max_bytes=limit) as mapping:
        assert mapping._room.hard_limit == (limit or 0)
