"""Lru: the coldest pages first, whatever was used since; idle is told from time, and never too early."""

import numpy as np
import pytest

from batchzip.store.lru import Lru
from batchzip.store.page_table import ENTRY, RAW, SAME_FILLED, PageTable


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pages:
    """A table with a clock, and what a group does with them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.table = PageTable()
        self.lru = Lru(self.table, self.clock)
        self.count = 0

    def store(self, first: int, count: int = 1, kind: int = RAW) -> None:
        self.lru.tick(count, self.count)
        entries = np.zeros(count, ENTRY)
        entries["kind"] = kind
        entries["epoch"] = self.lru.stamp
        self.count += count - int((self.table.replace(first, entries)["kind"] > 0).sum())

    def use(self, index: int) -> None:
        self.lru.tick(1, self.count)
        self.table.use(index, self.lru.stamp)

    def evict(self, count: int) -> list[int]:
        coldest = self.lru.coldest(count)
        if len(coldest):
            self.table.remove(coldest)
            self.count -= len(coldest)
        return [int(index) for index in coldest]

    def idle(self, seconds: float, *indices: int) -> list[bool]:
        found = self.lru.idle(self.table.get_many(np.array(indices)), seconds)
        return [bool(value) for value in found]


@pytest.fixture
def pages() -> Pages:
    return Pages()


def test_pages_leave_in_the_order_they_came_in(pages: Pages) -> None:
    order = [7, 3, 100_000, 5, 1, 2_000, 4]
    for index in order:
        pages.store(index)
    assert [pages.evict(1) for _ in order] == [[index] for index in order]
    assert pages.evict(1) == []


def test_a_page_that_is_used_goes_to_the_end(pages: Pages) -> None:
    for index in range(10):
        pages.store(index)
    for index in (0, 4, 2):
        pages.use(index)
    assert pages.evict(100) == [1, 3, 5, 6, 7, 8, 9, 0, 4, 2]


def test_a_page_used_after_it_was_chosen_has_a_second_chance(pages: Pages) -> None:
    for index in range(6):
        pages.store(index)
    assert pages.evict(1) == [0]  # the choice is made, of all of them
    pages.use(1)
    pages.use(3)
    left = [index for _ in range(6) for index in pages.evict(1)]
    assert left == [2, 4, 5, 1, 3]


def test_pages_outside_the_pool_are_no_candidates(pages: Pages) -> None:
    pages.store(0, kind=SAME_FILLED)
    pages.store(1)
    pages.store(2, kind=SAME_FILLED)
    assert pages.evict(10) == [1]


def test_an_index_of_a_block_that_was_given_to_others_is_told_right(pages: Pages) -> None:
    for index in range(4):
        pages.store(index)
    assert pages.evict(1) == [0]
    pages.table.clear(0, 512)
    pages.store(1 << 40, 3)
    assert pages.evict(10) == [(1 << 40) + number for number in range(3)]


def test_many_pages_leave_coldest_first_to_a_256th(pages: Pages) -> None:
    count = 100_000
    rng = np.random.default_rng(1)
    order = rng.permutation(count // 100)
    for folio in order.tolist():
        pages.store(folio * 100, 100)
    rank = np.empty(count // 100, np.int64)
    rank[order] = np.arange(len(order))
    evicted: list[int] = []
    while len(evicted) < 50_000:
        evicted += pages.evict(1000)
    assert len(set(evicted)) == len(evicted)
    left = np.array(evicted)
    # No page left before one that is older by more than two epochs.
    ranks = rank[left // 100] * 100
    assert (np.maximum.accumulate(ranks) - ranks).max() <= 2 * count // 256 + 200


def test_ages_stay_right_however_long_the_store_lives(pages: Pages) -> None:
    pages.store(0)
    pages.store(1)
    for number in range(200_000):
        pages.lru.advance(pages.count)
        if number % 1000 == 0:
            pages.use(1)
        if number % 70_000 == 0:
            assert pages.idle(0.0, 0) == [True]
    pages.store(2)
    pages.use(1)
    assert pages.evict(3) == [0, 2, 1]


def test_idle_is_what_was_not_used_for_so_long(pages: Pages) -> None:
    pages.store(0)
    pages.clock.now += 30
    pages.store(1)
    pages.clock.now += 30
    assert pages.idle(10, 0, 1) == [True, True]
    assert pages.idle(40, 0, 1) == [True, False]
    assert pages.idle(58, 0, 1) == [True, False]
    assert pages.idle(61, 0, 1) == [False, False]
    pages.use(0)
    assert pages.idle(10, 0, 1) == [False, True]
    assert pages.idle(0, 0, 1) == [True, True]


def test_none_is_called_idle_that_is_not(pages: Pages) -> None:
    rng = np.random.default_rng(2)
    used = np.zeros(2000)
    pages.store(0, 2000)
    used[:] = pages.clock.now
    for _ in range(3000):
        pages.clock.now += float(rng.exponential(0.05))
        index = int(rng.integers(2000))
        pages.use(index)
        used[index] = pages.clock.now
        seconds = float(rng.uniform(0.5, 60))
        ages = pages.clock.now - used
        idle = np.array(pages.idle(seconds, *range(2000)))
        assert (ages[idle] >= seconds).all()
        assert idle[ages > seconds + 2.2].all()


def test_idle_reaches_back_over_many_checkpoints(pages: Pages) -> None:
    pages.store(0)
    for _ in range(40_000):
        pages.clock.now += 1.5
        pages.store(1)
    assert pages.idle(10_000, 0, 1) == [True, False]
    assert pages.idle(3, 0, 1) == [True, False]
