"""The limit of a store, and memory that runs out: what is refused and what is kept."""

import itertools
import random

import pytest
from support.store_pages import SIZE, ZEROS, assert_nothing_is_stored, grown, noise, text

from batchzip import (
    Engine,
    PoolFull,
    StoreRejected,
    SwapStore,
)
from batchzip.core.memory import allocations, fail_allocation


def fill_to_the_limit(store: SwapStore) -> int:
    """Store incompressible pages one by one until one is refused; the index that was."""
    index = 0
    while True:
        try:
            store.store(index, noise(index))
        except StoreRejected as rejection:
            if rejection.reason != "pool_limit_hit" or rejection.errors is not None:
                raise
            return index
        index += 1


def test_a_full_pool_refuses_counts_it_and_keeps_what_it_has(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE) as store:
        refused = fill_to_the_limit(store)
        assert 60 <= refused < 64  # each with its header, and room that was reserved ahead
        assert store.counters.pool_total_size <= 64 * SIZE
        assert store.counters.pool_limit_hit == 1
        for hits in (2, 3):
            with pytest.raises(StoreRejected, match="pool_limit_hit"):
                store.store(refused, [noise(1), text(1)])
            assert store.counters.pool_limit_hit == hits
        assert refused not in store
        assert store.load_many(range(refused)).tobytes() == b"".join(map(noise, range(refused)))
        store.check_invariants()


def test_a_refused_store_drops_what_the_indices_held_for_it_is_stale(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        refused = fill_to_the_limit(store)
        with pytest.raises(StoreRejected):
            store.store(3, [noise(100), noise(101)])
        assert [index for index in range(refused) if index not in store] == [3, 4]
        store.check_invariants()


def test_even_a_same_filled_page_is_refused_by_a_full_pool(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        fill_to_the_limit(store)
        with pytest.raises(StoreRejected):
            store.store(3, ZEROS)
        assert 3 not in store


def test_a_folio_larger_than_the_pool_leaves_none_of_its_pages(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE, max_batch=4) as store:
        store.store(0, text(0))
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [noise(number) for number in range(20)])
        assert rejection.value.reason == "pool_limit_hit"
        assert grown(store, before) == {"pool_limit_hit": 1}
        assert_nothing_is_stored(store)
        store.store(0, [noise(number) for number in range(8)])  # the room is there again
        assert len(store) == 8


def limit_at(store: SwapStore, percent: int) -> None:
    """Set the limit so that the pool is filled to this share of it, or a hair below."""
    store.max_pool_bytes = -(-store.counters.pool_total_size * 100 // percent)


def test_a_pool_that_was_full_accepts_again_only_at_the_threshold(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE, accept_threshold_percent=90) as store:
        fill_to_the_limit(store)
        for percent in (99, 95, 91):
            limit_at(store, percent)
            with pytest.raises(StoreRejected, match="pool_limit_hit"):
                store.store(100, ZEROS)
        limit_at(store, 90)
        store.store(100, ZEROS)
        limit_at(store, 99)  # not at its maximum: it has not become full again
        store.store(101, ZEROS)
        limit_at(store, 100)
        with pytest.raises(StoreRejected):
            store.store(102, ZEROS)
        limit_at(store, 95)
        with pytest.raises(StoreRejected):
            store.store(102, ZEROS)


def test_pool_limit_hit_grows_where_the_pool_is_at_its_maximum_and_only_there(
    engine: Engine,
) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE) as store:
        fill_to_the_limit(store)
        limit_at(store, 95)
        before = store.counters
        with pytest.raises(StoreRejected):
            store.store(100, ZEROS)  # refused by the hysteresis, below the maximum
        assert grown(store, before) == {}


def test_the_threshold_can_be_changed_at_run_time(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=16 * SIZE, accept_threshold_percent=50) as store:
        fill_to_the_limit(store)
        limit_at(store, 95)
        with pytest.raises(StoreRejected):
            store.store(100, ZEROS)
        store.accept_threshold_percent = 95
        store.store(100, ZEROS)


def test_a_limit_that_is_lifted_lets_everything_in(engine: Engine) -> None:
    with SwapStore(engine, max_pool_bytes=0) as store:
        with pytest.raises(StoreRejected):
            store.store(0, ZEROS)
        store.max_pool_bytes = None
        store.store(0, [noise(number) for number in range(64)])
        assert len(store) == 64


def test_a_limit_below_what_is_held_refuses_but_takes_nothing_away(store: SwapStore) -> None:
    store.store(0, [noise(number) for number in range(64)])
    store.max_pool_bytes = 4 * SIZE
    with pytest.raises(StoreRejected):
        store.store(64, ZEROS)
    assert len(store) == 64
    assert store.load(63) == noise(63)


def test_swinging_the_limit_never_brings_an_older_page_back(engine: Engine) -> None:
    rng = random.Random(3)
    newest: dict[int, bytes] = {}
    with SwapStore(engine) as store:
        for turn in range(400):
            store.max_pool_bytes = rng.choice([20, 1]) * SIZE
            index = rng.randrange(30)
            page = rng.choice([noise, text])(turn)
            try:
                store.store(index, page)
                newest[index] = page
            except StoreRejected:
                newest.pop(index, None)
            for at in range(30):
                assert (at in store) == (at in newest)
        assert {at: bytes(store.load(at)) for at in newest} == newest
        store.check_invariants()


# Memory that is not there


def test_memory_the_system_does_not_give_is_a_failed_allocation_not_the_limit(
    engine: Engine,
) -> None:
    with SwapStore(engine, max_pool_bytes=1 << 20, max_batch=4) as store:
        store.store(0, [text(0), ZEROS])
        before = store.counters
        fail_allocation(1, 1000)
        try:
            with pytest.raises(PoolFull) as full:
                store._resources.pool.malloc_many([SIZE] * 64)
            assert not full.value.at_limit
            with pytest.raises(StoreRejected) as rejection:
                store.store(0, [noise(number) for number in range(12)])
        finally:
            fail_allocation(0)
        assert rejection.value.reason == "reject_alloc_fail"
        assert rejection.value.errors is None
        assert_nothing_is_stored(store)
        store.store(0, noise(1))  # the pool does not count as full
        assert store.load(0) == noise(1)
        assert grown(store, before) == {"reject_alloc_fail": 1}


def test_memory_that_runs_out_at_any_request_leaves_none_of_a_folio(engine: Engine) -> None:
    for number in itertools.count(1):
        with SwapStore(engine, max_batch=4) as store:
            store.store(510, [noise(1), text(1), noise(2)])
            first = allocations()
            fail_allocation(number)
            try:
                store.store(510, [noise(number) for number in range(20)])
            except StoreRejected:
                assert_nothing_is_stored(store)
                assert store.counters.reject_alloc_fail == 1
            finally:
                fail_allocation(0)
            if allocations() - first < number:
                break
            assert len(store) in (0, 20)
    assert number > 3
