"""The coldest pages are written back first, and a page never counts as idle too early."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from support.faulty_file import FaultyFile
from support.store_pages import noise, word

from batchzip import Engine, SwapStore
from batchzip.core.lru import shift_clock
from batchzip.core.table import Kind

SIZE = 512


@pytest.fixture
def store() -> Iterator[SwapStore]:
    with (
        Engine("lz4", backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine, backing=FaultyFile(), shrinker_enabled=False) as store,
    ):
        yield store
        store.check_invariants()


def put(store: SwapStore, first: int, count: int = 1) -> None:
    store.store(first, [noise(first + number, SIZE) for number in range(count)])


def evict(store: SwapStore, count: int) -> set[int]:
    """Write so many back; which they were. They are taken out, too."""
    store.writeback(count)
    gone = np.frombuffer(store._entries.choose((Kind.BACKED,)), np.int64).tolist()
    for index in gone:
        assert store.load(index, exclusive=True) == noise(index, SIZE)
    return set(gone)


def evict_in_order(store: SwapStore, count: int) -> list[int]:
    return [index for _ in range(count) for index in evict(store, 1)]


def idle(store: SwapStore, seconds: float) -> set[int]:
    """Return the pages that `recompress(idle_for_s=…)` would take."""
    found = store._entries.choose((Kind.COMPRESSED, Kind.RAW), idle_s=seconds)
    return set(np.frombuffer(found, np.int64).tolist())


def test_pages_leave_in_the_order_they_came_in(store: SwapStore) -> None:
    order = [7, 3, 100_000, 5, 1, 2_000, 4]
    for index in order:
        put(store, index)
    assert evict_in_order(store, len(order)) == order
    assert evict(store, 1) == set()


def test_a_page_that_is_used_goes_to_the_end(store: SwapStore) -> None:
    for index in range(12):
        put(store, index)
    store.load(0)
    store.load_many([4])
    store.load(2)
    put(store, 3)
    assert evict_in_order(store, 12) == [1, 5, 6, 7, 8, 9, 10, 11, 0, 4, 2, 3]


def test_a_page_used_after_it_was_chosen_has_a_second_chance(store: SwapStore) -> None:
    for index in range(6):
        put(store, index)
    assert evict(store, 1) == {0}  # the choice is made, of all of them
    store.load(1)
    put(store, 3)
    assert evict_in_order(store, 5) == [2, 4, 5, 1, 3]


def test_pages_outside_the_pool_are_no_candidates(store: SwapStore) -> None:
    store.store(0, word(0, SIZE))
    put(store, 1)
    store.store(2, word(2, SIZE))
    assert evict(store, 10) == {1}
    assert len(store) == 2


def test_an_index_of_a_block_that_was_given_to_others_is_told_right(store: SwapStore) -> None:
    for index in range(4):
        put(store, index)
    assert evict(store, 1) == {0}
    store.invalidate(0, 512)
    put(store, 1 << 40, 3)
    assert evict(store, 10) == {(1 << 40) + number for number in range(3)}


@pytest.mark.slow
def test_many_pages_leave_coldest_first_to_a_256th(store: SwapStore) -> None:
    folios = list(range(300))
    random.Random(1).shuffle(folios)
    for folio in folios:
        put(store, folio * 100, 100)
    rank = {folio: 100 * number for number, folio in enumerate(folios)}
    latest = 0
    for _ in range(15):
        gone = evict(store, 1000)
        assert len(gone) == 1000
        # No page leaves before one that is older by more than two epochs.
        assert latest - min(rank[index // 100] for index in gone) <= 2 * 30_000 // 256 + 200
        latest = max(latest, *(rank[index // 100] for index in gone))


@pytest.mark.slow
def test_ages_stay_right_however_long_the_store_lives(store: SwapStore) -> None:
    put(store, 0)
    put(store, 1)
    for turn in range(140_000):  # an epoch each, of which entries have 16 bits
        store.load(1)
        if turn % 7_000 == 0:
            assert idle(store, 0) == {0, 1}
            assert np.frombuffer(store._entries.coldest(1), np.int64).tolist() == [0]
            store._entries.coldest(2)  # so that the next choice is a new one
    put(store, 2)
    store.load(1)
    assert evict_in_order(store, 3) == [0, 2, 1]


def test_idle_is_what_was_not_used_for_so_long(store: SwapStore) -> None:
    put(store, 0)
    shift_clock(30)
    put(store, 1)
    shift_clock(30)
    assert idle(store, 10) == {0, 1}
    assert idle(store, 40) == idle(store, 58) == {0}
    assert idle(store, 61) == set()
    store.load(0)
    assert idle(store, 10) == {1}
    assert idle(store, 0) == {0, 1}


def test_none_is_called_idle_that_is_not(store: SwapStore) -> None:
    rng = random.Random(2)
    count = 300
    put(store, 0, count)
    now = 0.0
    used = np.zeros(count)
    for _ in range(2000):
        passed = rng.expovariate(20)
        shift_clock(passed)
        now += passed
        index = rng.randrange(count)
        store.load(index)
        used[index] = now
        seconds = rng.uniform(0.5, 60)
        found = idle(store, seconds)
        ages = now - used
        assert all(ages[index] > seconds - 0.1 for index in found)  # in which the test itself runs
        late = ages > seconds + 2.2
        assert found.issuperset(np.flatnonzero(late).tolist())


@pytest.mark.slow
def test_idle_reaches_back_over_many_moments(store: SwapStore) -> None:
    put(store, 0)
    for _ in range(40_000):
        shift_clock(1.5)
        put(store, 1)
    assert idle(store, 10_000) == idle(store, 3) == {0}
