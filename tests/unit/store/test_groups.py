"""Groups: indices, limits, orders of use and counters of their own in one store."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.entries import kind
from support.store_pages import SIZE, ZEROS, noise, text, word

from batchzip import BadArgument, ClosedError, Engine, PageNotStored, StoreRejected, SwapStore
from batchzip.core.table import Kind


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store:
        yield store


def fill(group: Any, count: int, first: int = 0) -> None:
    for index in range(first, first + count):
        group.store(index, noise(index))


def test_an_index_is_a_group_s_own(store: SwapStore) -> None:
    one, two = store.group("one"), store.group("two")
    for number, group in enumerate((store, one, two)):
        group.store(7, text(number))
    assert [group.load(7) for group in (store, one, two)] == [text(0), text(1), text(2)]
    one.invalidate(7)
    with pytest.raises(PageNotStored):
        one.load(7)
    assert (7 in store, 7 in one, 7 in two) == (True, False, True)
    assert (len(store), len(one), len(two)) == (1, 0, 1)
    store.check_invariants()


def test_a_group_is_made_once_and_found_by_its_name(store: SwapStore) -> None:
    one = store.group("one", max_bytes=100)
    assert store.group("one") is one
    assert one.max_bytes == 100
    assert store.group("one", max_bytes=200).max_bytes == 200
    assert store.groups == {"one": one}
    assert one.name == "one"
    assert store.name == ""


@pytest.mark.parametrize("name", ["", None, 7, b"one"])
def test_an_invalid_group_name_is_refused(store: SwapStore, name: Any) -> None:
    with pytest.raises(BadArgument, match="name"):
        store.group(name)


@pytest.mark.parametrize("limit", [-1, 1.5, "64M", True])
def test_an_invalid_group_limit_is_refused(store: SwapStore, limit: Any) -> None:
    with pytest.raises(BadArgument, match="max_bytes"):
        store.group("one", max_bytes=limit)
    group = store.group("two", max_bytes=5)
    with pytest.raises(BadArgument, match="max_bytes"):
        group.max_bytes = limit
    assert group.max_bytes == 5
    assert "one" not in store.groups


def test_counters_are_each_group_s_and_the_store_adds_them_up(store: SwapStore) -> None:
    one = store.group("one")
    store.store(0, [noise(0), ZEROS])
    one.store(0, [noise(1), word(2), text(3)])
    one.writeback([0])
    assert one.counters.stored_pages == 2
    assert one.counters.backed_pages == 1
    assert one.counters.same_filled_pages == 1
    assert one.counters.written_back_pages == 1
    assert one.counters.pool_total_size < SIZE
    total = store.counters
    assert (total.stored_pages, total.backed_pages, total.same_filled_pages) == (4, 1, 2)
    assert total.written_back_pages == 1


def test_a_group_over_its_limit_refuses_and_the_others_do_not(engine: Engine) -> None:
    with SwapStore(engine) as store:
        small = store.group("small", max_bytes=4 * SIZE)
        fill(small, 4)
        with pytest.raises(StoreRejected, match="'small'") as refusal:
            small.store(9, noise(9))
        assert refusal.value.reason == "pool_limit_hit"
        assert small.counters.pool_limit_hit == 1
        store.store(9, noise(9))
        store.group("other").store(9, noise(9))
        assert store.counters.pool_limit_hit == 1
        # As in the pool: open again at the threshold, not just below the limit.
        small.invalidate(0)
        small.store(9, noise(9))
        small.max_bytes = None
        fill(small, 20, first=100)
        store.check_invariants()


@pytest.mark.parametrize("kind_of_store", ["private", "shared", "backed"])
def test_a_folio_never_takes_a_group_beyond_its_limit(
    engine: Engine, tmp_path: Path, kind_of_store: str
) -> None:
    backing = tmp_path if kind_of_store == "backed" else None
    with SwapStore(engine, backing=backing, shrinker_enabled=False) as store:
        group = store.group("small", max_bytes=8 * SIZE + 1)
        if kind_of_store == "shared":
            store.share()
        for count in (8, 8, 9):  # the second replaces the first: what it replaces does not count
            pages = [noise(seed + count) for seed in range(count)]
            if count == 9 and backing is None:
                with pytest.raises(StoreRejected, match="'small'") as refusal:
                    group.store(0, pages)
                assert refusal.value.reason == "pool_limit_hit"
                assert len(group) == 0
            else:
                group.store(0, pages)
                assert group.load_many(range(count)).tobytes() == b"".join(pages)
            assert group.counters.pool_total_size == (8 * SIZE if count == 8 else 0)
        assert group.counters.pool_limit_hit == 1
        group.store(20, [text(1), ZEROS])  # what fits is taken as before
        assert group.counters.stored_pages == 2
        store.check_invariants()


def test_threads_together_do_not_take_a_group_beyond_its_limit(engine: Engine) -> None:
    limit = 100 * SIZE
    with SwapStore(engine) as store, ThreadPoolExecutor(6) as threads:
        group = store.group("small", max_bytes=limit)

        def use(seed: int) -> int:
            most = 0
            for turn in range(20):
                with contextlib.suppress(StoreRejected):
                    group.store(seed * 100 + turn, [noise(seed)] * 30)
                most = max(most, group.counters.pool_total_size)
            return most

        assert 70 * SIZE < max(threads.map(use, range(6))) <= limit
        store.check_invariants()


def test_zswap_selftest_only_the_group_over_its_limit_is_written_back(store: SwapStore) -> None:
    one, two = store.group("one", max_bytes=10 * SIZE), store.group("two", max_bytes=100 * SIZE)
    for group in (one, two, store):
        fill(group, 10)
    one.max_bytes = 8 * SIZE
    assert store.shrink() > 0
    assert one.counters.pool_total_size <= 8 * SIZE * 90 // 100
    assert one.counters.written_back_pages == one.counters.backed_pages > 0
    assert two.counters.backed_pages == 0
    assert store.counters.backed_pages == one.counters.backed_pages
    for group in (one, two, store):
        assert [group.load(index) for index in range(10)] == [noise(n) for n in range(10)]


def test_over_the_store_s_limit_the_largest_group_gives_way(store: SwapStore) -> None:
    small, large = store.group("small"), store.group("large")
    fill(small, 5)
    fill(large, 50)
    store.max_pool_bytes = 40 * SIZE
    store.shrink()
    assert store.counters.pool_total_size <= 40 * SIZE * 90 // 100
    assert large.counters.backed_pages > 0
    assert small.counters.backed_pages == 0


def test_each_group_has_its_own_order_of_use(store: SwapStore) -> None:
    one, two = store.group("one"), store.group("two")
    for index in range(8):
        one.store(index, noise(index))
        two.store(index, noise(index))
    for index in range(4):
        one.load(index)
    assert one.writeback(4) == 4
    assert two.writeback(4) == 4
    backed = [[kind(g, i) == Kind.BACKED for i in range(8)] for g in (one, two)]
    assert backed == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4]


def test_groups_are_closed_with_their_store(engine: Engine) -> None:
    with SwapStore(engine) as store:
        group = store.group("one")
        group.store(0, text(0))
    for call in (lambda: group.load(0), lambda: group.store(0, text(0)), lambda: len(group)):
        with pytest.raises(ClosedError):
            call()


def test_a_dropped_group_is_gone_with_its_pages_and_the_others_stay(store: SwapStore) -> None:
    one, two = store.group("one"), store.group("two")
    for group in (store, one, two):
        group.store(0, [noise(0), text(1), ZEROS])
        group.writeback([1])
    assert store.drop_group("one") == 3
    assert store.groups == {"two": two}
    assert one.closed
    for call in (lambda: one.load(0), lambda: one.store(0, text(0)), lambda: 0 in one):
        with pytest.raises(ClosedError):
            call()
    one.close()
    store.check_invariants()
    assert store.counters.stored_pages == 4
    assert store.counters.backed_pages == 2
    assert store.compressed_bytes == 2 * SIZE
    again = store.group("one")
    assert again is not one
    assert len(again) == 0
    for group in (store, two):
        assert group.load_many(range(3)).tobytes() == noise(0) + text(1) + ZEROS


def test_a_store_keeps_its_counts_of_events_when_a_group_is_dropped(store: SwapStore) -> None:
    group = store.group("one", max_bytes=0)
    group.store(0, [noise(0), text(1)])
    group.max_bytes = None
    group.store(2, [noise(2), text(3)])
    group.writeback(2)
    before = store.counters
    assert (before.pool_limit_hit, before.written_back_pages, before.backed_pages) == (1, 2, 4)
    store.drop_group("one")
    after = store.counters
    assert (after.pool_limit_hit, after.written_back_pages, after.backed_pages) == (1, 2, 0)
    assert store.counters_by_group()[""].written_back_pages == 0
    assert store.group("one").counters.written_back_pages == 0


def test_a_group_that_is_closed_is_dropped(store: SwapStore) -> None:
    group = store.group("one")
    group.store(0, [noise(0), text(1)])
    group.close()
    group.close()
    assert store.groups == {}
    assert len(store._resources.pool) == 0
    with pytest.raises(BadArgument, match="'one'"):
        store.drop_group("one")
    store.check_invariants()


@pytest.mark.parametrize("name", ["", "no such group", None, 7])
def test_drop_group_refuses_unknown_names_and_the_default_group(
    store: SwapStore, name: Any
) -> None:
    store.store(0, text(0))
    with pytest.raises(BadArgument):
        store.drop_group(name)
    assert store.load(0) == text(0)


@pytest.mark.slow
def test_a_group_that_is_dropped_while_threads_use_it(store: SwapStore) -> None:
    """Each of them meets ClosedError, or the page that it stored itself."""
    rounds = 200

    def use(seed: int) -> None:
        for turn in range(rounds):
            group = store.group("busy")
            with contextlib.suppress(ClosedError, PageNotStored):
                group.store(seed, noise(turn))
                assert group.load(seed) == noise(turn)
                group.writeback(1)
                assert group.load(seed, exclusive=True) == noise(turn)

    with ThreadPoolExecutor(3) as threads:
        users = [threads.submit(use, seed) for seed in range(3)]
        while not all(user.done() for user in users):
            with contextlib.suppress(BadArgument):
                store.drop_group("busy")
        for user in users:
            user.result()
    store.check_invariants()
    assert len(store._resources.all_entries) == 1 + len(store.groups)


def test_a_group_can_be_made_with_a_limit_of_nothing(store: SwapStore) -> None:
    group = store.group("nothing", max_bytes=0)
    group.store(0, [noise(0), ZEROS])
    assert group.counters.backed_pages == 1
    assert group.load_many([0, 1]).tobytes() == noise(0) + ZEROS
