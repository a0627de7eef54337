"""The pager: every byte read is the last one written, wherever its page has been meanwhile."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.slow import SlowCodec
from support.forked import in_forked_child
from support.paged_model import run_model
from support.paged_region import (
    HANG_LIMIT_S,
    KINDS,
    Region,
    await_true,
    content,
    end_of,
    filled,
    mappings,
    mixed,
    needs_paging,
    noisy,
    opened,
    tasks,
)

from batchzip import BadArgument, BatchzipError, ClosedError, Engine, ForkedProcess, SwapStore
from batchzip.core.pager import Pager
from batchzip.core.region import AccessAdvice
from batchzip.core.userfaultfd import CLEAN_PAGES, WAYS, probe
from batchzip.testing import LeakCheck
from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_paging

SIZE = 4096
PAGE_SIZES = [4096 << shift for shift in range(5)]


@pytest.fixture
def region() -> Iterator[Region]:
    with opened() as region:
        yield region


# Contents.


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_evicted_comes_back(kind: str, page_size: int) -> None:
    with opened(page_size=page_size, pages=24, budget=6) as region:
        data = content(kind, 3, 20 * page_size)
        array = filled(region, data)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        assert region.figures["resident_pages"] == 0
        np.testing.assert_array_equal(array[::-1], data[::-1])
        array[::page_size] = 7
        data[::page_size] = 7
        region.evict_all()
        np.testing.assert_array_equal(array, data)


@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [
        ("lz4", {}),
        ("lz4", {"shuffle": "f8"}),
        ("lz4hc", {}),
        ("zstd", {"level": 1}),
        ("zstd", {"level": 3, "shuffle": "f4"}),
    ],
    ids=str,
)
def test_with_every_native_codec(algorithm: str, parameters: dict[str, Any]) -> None:
    with opened(algorithm, parameters=parameters, pages=200, budget=20) as region:
        data = mixed(180)
        array = filled(region, data)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        np.testing.assert_array_equal(array[::-1], data[::-1])


def test_new_memory_is_zero_and_costs_nothing_until_it_is_written_to(region: Region) -> None:
    array = region.array(200 * SIZE)
    assert not array.any()
    assert region.figures["resident_pages"] <= region.pager.budget
    region.evict_all()
    assert region.figures["stored_pages"] == 0
    assert len(region.group) == 0


def test_pages_that_were_emptied_need_no_entry(region: Region) -> None:
    array = filled(region, noisy(100))
    region.evict_all()
    assert len(region.group) == 100
    array[: 60 * SIZE] = 0
    region.evict_all()
    assert len(region.group) == 40
    assert not array[: 60 * SIZE].any()


def test_same_filled_pages_take_no_memory_of_the_pool(region: Region) -> None:
    array = filled(region, content("same", 5, 200 * SIZE))
    region.evict_all()
    assert region.group.counters.same_filled_pages == 200
    assert region.store._resources.pool.objects == 0
    np.testing.assert_array_equal(array, content("same", 5, 200 * SIZE))


def test_the_budget_is_kept_while_much_more_is_touched(region: Region) -> None:
    array = region.array(240 * SIZE, np.uint8)
    data = noisy(240)
    for start in range(0, len(data), 5 * SIZE):
        array[start : start + 5 * SIZE] = data[start : start + 5 * SIZE]
        assert region.figures["resident_pages"] <= region.pager.budget
    rng = np.random.default_rng(1)
    for _ in range(50):
        chosen = rng.integers(0, len(data), 200)
        np.testing.assert_array_equal(array[chosen], data[chosen])
        assert region.figures["resident_pages"] <= region.pager.budget
    assert region.figures["over_budget"] == 0
    assert region.figures["lost_pages"] == 0


def test_with_a_budget_of_two_pages() -> None:
    with opened(budget=2, pages=64) as region:
        data = mixed(60)
        array = filled(region, data)
        np.testing.assert_array_equal(array[::-1], data[::-1])
        array[:] = array[::-1].copy()
        np.testing.assert_array_equal(array, data[::-1])
        region.await_budget()


def test_a_word_over_the_border_of_two_pages() -> None:
    with opened(budget=2, pages=64) as region:
        array = region.array(60 * SIZE)
        words = np.ndarray((59,), np.uint64, array, SIZE - 4, (SIZE,))
        words[:] = np.arange(59, dtype=np.uint64) * np.uint64(0x0123456789ABCDEF)
        region.evict_all()
        assert words.tolist() == [page * 0x0123456789ABCDEF % (1 << 64) for page in range(59)]


# Where pages are.


def test_pages_that_were_only_read_are_not_compressed_again(region: Region) -> None:
    if not region.pager.tracks_writes:
        pytest.skip("this kernel does not tell which pages were written to")
    data = noisy(30)
    array = filled(region, data)
    region.evict_all()
    before = region.figures
    np.testing.assert_array_equal(array, data)
    assert region.evict_all() == 30
    after = region.figures
    assert after["evicted_pages"] == before["evicted_pages"]
    assert after["dropped_clean_pages"] - before["dropped_clean_pages"] == 30
    np.testing.assert_array_equal(array, data)


def test_a_clean_page_that_is_written_to_is_not_taken_for_clean(region: Region) -> None:
    data = noisy(30)
    array = filled(region, data)
    for turn in range(8):
        region.evict_all()
        np.testing.assert_array_equal(array, data)  # by reading: protected
        chosen = slice(turn % 3 * SIZE + 9, None, 3 * SIZE)
        array[chosen] += 1
        data[chosen] += 1
    region.evict_all()
    np.testing.assert_array_equal(array, data)


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_every_machine_page_of_a_clean_page_tells_of_a_write(page_size: int) -> None:
    with opened(page_size=page_size, pages=40, budget=20) as region:
        data = content("text", 1, 16 * page_size)
        array = filled(region, data)
        for at in range(0, page_size, 4096):
            region.evict_all()
            np.testing.assert_array_equal(array, data)
            array[at + 17 :: page_size] ^= 1
            data[at + 17 :: page_size] ^= 1
        region.evict_all()
        np.testing.assert_array_equal(array, data)


def test_the_kernels_tracking_of_writes_is_used_where_it_has_it(region: Region) -> None:
    way, features, _ = probe()
    assert region.pager.way == way
    assert region.pager.way in WAYS
    assert region.pager.tracks_writes == (features & CLEAN_PAGES == CLEAN_PAGES)


def test_what_is_about_to_leave_gets_a_second_chance() -> None:
    with opened(pages=1400, budget=1024) as region:
        data = noisy(1280)
        array = filled(region, data)
        for _ in range(100):  # until some are between the hands when everything rests
            region.pager.budget = 1400  # nothing more is unmapped from now on
            region.pager.check_invariants()  # waits for what is under way
            before = region.figures
            if before["candidate_pages"]:
                break
            region.pager.budget = 1024
            np.testing.assert_array_equal(array, data)
        assert before["candidate_pages"]
        np.testing.assert_array_equal(array, data)
        after = region.figures
        assert after["second_chances"] - before["second_chances"] >= before["candidate_pages"]
        assert after["restored_pages"] - before["restored_pages"] <= before["stored_pages"]
        assert after["faults_minor"] >= after["second_chances"] > 0


def test_pages_in_use_stay_though_all_others_go_through_memory() -> None:
    with opened(pages=2048, budget=256) as region:
        array = region.array(2048 * SIZE)
        hot = array[: 80 * SIZE : SIZE]
        for start in range(80 * SIZE, len(array), 4 * SIZE):
            array[start : start + 4 * SIZE] = start // SIZE % 250 + 1
            hot += 1
        assert region.figures["evicted_pages"] > 1500
        assert region.figures["restored_pages"] < 320


def test_what_is_prefetched_needs_no_fault(region: Region) -> None:
    data = noisy(20)
    array = filled(region, data)
    region.evict_all()
    before = region.figures
    region.pager.prefetch(*region.pages_of(array))
    await_true(
        lambda: region.figures["prefetched_pages"] - before["prefetched_pages"] == 20, "pages"
    )
    np.testing.assert_array_equal(array, data)
    after = region.figures
    assert after["faults_missing"] == before["faults_missing"]
    assert after["resident_pages"] == 20


def test_prefetching_more_than_the_budget_keeps_it(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    region.pager.prefetch(*region.pages_of(array))
    np.testing.assert_array_equal(array, data)
    region.await_budget()


@pytest.mark.parametrize("stride", [1, 3, -1, -2])
def test_strides_are_read_ahead(stride: int) -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(1000)
        array = filled(region, data)
        region.evict_all()
        before = region.figures
        touched = array[::SIZE][::stride]
        np.testing.assert_array_equal(touched, data[::SIZE][::stride])
        after = region.figures
        ahead = after["readahead_pages"] - before["readahead_pages"]
        assert ahead > len(touched) // 8
        assert after["readahead_hits"] - before["readahead_hits"] > ahead // 4
        assert after["faults_missing"] - before["faults_missing"] < len(touched)


def test_advised_random_pages_are_not_read_ahead() -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(1000)
        array = filled(region, data)
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.RANDOM)
        before = region.figures["readahead_pages"]
        np.testing.assert_array_equal(array, data)
        assert region.figures["readahead_pages"] == before
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.NORMAL)
        np.testing.assert_array_equal(array, data)
        assert region.figures["readahead_pages"] > before


def test_advised_sequential_pages_are_read_ahead_from_the_first_one_on() -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(200)
        array = filled(region, data)
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.SEQUENTIAL)
        before = region.figures["readahead_pages"]
        assert array[0] == data[0]
        await_true(lambda: region.figures["readahead_pages"] > before, "pages behind the first")
        np.testing.assert_array_equal(array, data)


def test_pinned_pages_stay_and_others_go(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    first, _ = region.pages_of(array)
    region.pager.pin(first + 10, 12)
    assert region.figures["pinned_pages"] == 12
    region.evict_all()
    before = region.figures
    assert before["resident_pages"] == 12
    np.testing.assert_array_equal(array[10 * SIZE : 22 * SIZE], data[10 * SIZE : 22 * SIZE])
    assert region.figures["faults_missing"] == before["faults_missing"]
    np.testing.assert_array_equal(array, data)
    before = region.figures
    array[10 * SIZE : 22 * SIZE : SIZE] = 9
    assert region.figures["faults_missing"] == before["faults_missing"]
    assert region.figures["faults_minor"] == before["faults_minor"]
    region.pager.unpin(first + 10, 12)
    assert region.figures["pinned_pages"] == 0
    region.evict_all()
    assert region.figures["resident_pages"] == 0


def test_pins_are_counted(region: Region) -> None:
    array = filled(region, noisy(10))
    pages = region.pages_of(array)
    region.pager.pin(*pages)
    region.pager.pin(pages[0] + 2, 3)
    region.pager.unpin(*pages)
    assert region.figures["pinned_pages"] == 3
    assert region.evict_all() == 7
    region.pager.unpin(pages[0] + 2, 3)
    assert region.evict_all() == 3


def test_more_than_the_budget_cannot_be_pinned(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)
    first, _ = region.pages_of(array)
    with pytest.raises(BadArgument, match="budget"):
        region.pager.pin(first, 33)
    assert region.figures["pinned_pages"] == 0
    region.pager.pin(first, 16)
    with pytest.raises(BadArgument, match="budget"):
        region.pager.pin(first + 50, 20)
    assert region.figures["pinned_pages"] == 16
    np.testing.assert_array_equal(array, data)
    region.pager.unpin(first, 16)


def test_a_smaller_budget_sends_pages_out_and_a_larger_one_keeps_them(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    for budget in (64, 5, 256, 2, 100):
        region.pager.budget = budget
        assert region.pager.budget == region.figures["budget_pages"] == budget
        region.await_budget()
        np.testing.assert_array_equal(array, data)
    region.pager.budget = 256
    np.testing.assert_array_equal(array, data)
    before = region.figures["restored_pages"]
    np.testing.assert_array_equal(array, data)
    assert region.figures["restored_pages"] == before


@pytest.mark.parametrize("pages", [-256, 1 << 48, 1 << 60, 1 << 70])
def test_a_region_that_cannot_be_had_is_refused(pages: int) -> None:
    before = tasks()
    with pytest.raises((BatchzipError, MemoryError, OverflowError)), opened(pages=pages):
        pass
    await_true(lambda: tasks() <= before, "the end of its threads")


def test_a_codec_in_python_is_refused() -> None:
    with (
        Engine(SlowCodec(0.0), backend="sequential") as engine,
        SwapStore(engine) as store,
        pytest.raises(BadArgument, match="codec"),
    ):
        Pager(
            store.group("region")._entries,
            store._resources.writer.number,
            pages=64,
            budget=8,
        )


# Allocation.


def test_memory_that_was_given_back_is_empty_when_it_is_had_again(region: Region) -> None:
    for turn in range(20):
        array = region.array(200 * SIZE)
        assert not array.any()
        array[:] = turn + 1
        view = array[50 * SIZE :]
        del array
        assert (view == turn + 1).all()
        with pytest.raises(MemoryError):
            region.array(100 * SIZE)
        del view
    figures = region.figures
    assert figures["resident_pages"] == figures["stored_pages"] == 0
    assert len(region.group) == 0


def test_what_does_not_fit_is_refused_and_what_is_freed_fits_again(region: Region) -> None:
    with pytest.raises(MemoryError):
        region.array(257 * SIZE)
    arrays = [filled(region, noisy(32, seed)) for seed in range(8)]
    with pytest.raises(MemoryError):
        region.array(1)
    del arrays[2], arrays[4]  # two holes, not one
    with pytest.raises(MemoryError):
        region.array(33 * SIZE)
    again = [region.array(32 * SIZE) for _ in range(2)]
    assert not any(array.any() for array in again)
    for seed, array in zip((0, 1, 3, 4, 6, 7), arrays, strict=False):
        if seed not in (2, 5):
            np.testing.assert_array_equal(array, noisy(32, seed))


@pytest.mark.parametrize("nbytes", [-1, 1 << 62, 1 << 80])
def test_sizes_that_make_no_sense_are_refused(region: Region, nbytes: int) -> None:
    with pytest.raises((BadArgument, MemoryError, OverflowError)):
        region.pager.allocate(nbytes)


def test_an_array_lies_where_it_says(region: Region) -> None:
    extent = region.pager.allocate(3 * SIZE + 5)
    view = memoryview(extent)  # type: ignore[arg-type]
    assert extent.nbytes == view.nbytes == 3 * SIZE + 5
    assert not view.readonly
    array = np.frombuffer(view, np.uint8)
    assert array.ctypes.data == extent.address
    assert extent.address % SIZE == 0
    first, count = region.pager.find(extent.address, 3 * SIZE + 5)
    assert count == 4
    assert region.pager.find(extent.address + SIZE - 1, 2) == (first, 2)
    assert region.pager.find(extent.address + SIZE, 1) == (first + 1, 1)


def test_memory_that_is_not_of_one_array_is_not_found(region: Region) -> None:
    one, two = region.pager.allocate(2 * SIZE), region.pager.allocate(2 * SIZE)
    ours = np.empty(10)
    low = min(one.address, two.address)
    for address, nbytes in [
        (ours.ctypes.data, 10),
        (low - 1, 2),
        (low + 4 * SIZE, 1),
        (0, 1),
        (low, 1 << 60),
        ((1 << 64) - 1, 10),
    ]:
        with pytest.raises(BadArgument):
            region.pager.find(address, nbytes)
    address = two.address
    del two
    with pytest.raises(BadArgument):
        region.pager.find(address, 1)


@pytest.mark.parametrize("call", ["evict", "prefetch", "pin", "unpin", "advise"])
@pytest.mark.parametrize(
    "where", [(-1, 1), (0, -1), (256, 1), (250, 10), (1 << 60, 2), (5, (1 << 64) - 3)], ids=str
)
def test_pages_that_are_not_there_are_refused(
    region: Region, call: str, where: tuple[int, int]
) -> None:
    array = filled(region, noisy(256))
    advice = (AccessAdvice.RANDOM,) if call == "advise" else ()
    with pytest.raises((BadArgument, OverflowError)):
        getattr(region.pager, call)(*where, *advice)
    np.testing.assert_array_equal(array, noisy(256))


def test_views_of_every_kind_keep_the_memory(region: Region) -> None:
    array = filled(region, noisy(100))
    expected = array.copy()
    views: list[Any] = [array[5:], array.view(np.uint64), array.data, array.reshape(100, -1)]
    del array
    for view in views:
        region.pager.evict(0, 256)
        np.testing.assert_array_equal(
            np.asarray(view).ravel().view(np.uint8)[-1000:], expected[-1000:]
        )
    del view
    while views:
        assert region.figures["stored_pages"] + region.figures["resident_pages"] == 100
        views.pop()
    assert region.figures["stored_pages"] == region.figures["resident_pages"] == 0


def test_arrays_hold_the_pager_that_nobody_else_holds() -> None:
    with LeakCheck(), Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        before = tasks()
        pager = Pager(
            store.group("region")._entries, store._resources.writer.number, pages=64, budget=8
        )
        array = np.frombuffer(memoryview(pager.allocate(60 * SIZE)), np.uint8)  # type: ignore[arg-type]
        data = noisy(60)
        array[:] = data
        del pager
        gc.collect()
        np.testing.assert_array_equal(array, data)
        del array
        gc.collect()
        await_true(lambda: tasks() <= before, "the end of its threads")


# Figures.


def test_figures_count_what_there_was(region: Region) -> None:
    array = filled(region, mixed(200))
    figures = region.figures
    assert figures["pages"] == region.pager.pages == 256
    assert region.pager.page_size == SIZE
    assert figures["faults_missing"] > 0
    assert figures["zeroed_pages"] > 0
    assert figures["evicted_pages"] + figures["dropped_empty_pages"] >= 200 - 32

    def there_are_all() -> bool:
        kinds = ("resident", "stored", "empty")
        return sum(region.figures[f"{kind}_pages"] for kind in kinds) == 200

    await_true(there_are_all, "pages that are just restored")
    calls, total_ns = region.pager.latencies()
    assert total_ns > sum(calls) > 0
    np.testing.assert_array_equal(array, mixed(200))
    assert region.figures["restored_pages"] > 0
    assert sum(region.pager.latencies()[0]) > sum(calls)
    assert region.pager.latencies()[1] > total_ns


def test_nobody_waits_for_an_event_longer_than_told(region: Region) -> None:
    assert region.pager.await_event(0.0) == 0
    assert region.pager.await_event(0.01) == 0


# Ends.


def test_close_says_how_many_arrays_are_left_and_is_told_to_who_waits() -> None:
    with opened() as region:
        arrays = [filled(region, noisy(10)) for _ in range(3)]
        events: list[int] = []
        waiting = threading.Thread(target=lambda: events.append(region.pager.await_event(60)))
        waiting.start()
        assert region.pager.close() == 3
        waiting.join(HANG_LIMIT_S)
        assert events in ([8], [])
        assert region.pager.closed
        region.pager.close()
        del arrays


@pytest.mark.parametrize(
    "use",
    [
        lambda pager: pager.allocate(5),
        lambda pager: pager.evict(0, 1),
        lambda pager: pager.prefetch(0, 1),
        lambda pager: pager.pin(0, 1),
        lambda pager: setattr(pager, "budget", 10),
        lambda pager: pager.find(4096, 1),
    ],
)
def test_use_after_close_is_refused(region: Region, use: Any) -> None:
    region.pager.close()
    with pytest.raises(ClosedError):
        use(region.pager)


def test_a_touch_after_close_is_a_sigbus() -> None:
    def touch_after_close() -> None:
        with opened() as region:
            array = filled(region, noisy(100))
            region.pager.close()
            array[5] = 1

    end = end_of(touch_after_close)
    assert end.signal == signal.SIGBUS, end


def test_arrays_that_go_after_the_pager_was_closed_leave_nothing() -> None:
    before = tasks(), mappings()
    with opened() as region:
        array = filled(region, noisy(100))
        region.pager.close()
    del array, region
    gc.collect()
    await_true(lambda: tasks() <= before[0], "the end of its threads")
    assert mappings() <= before[1]


def test_many_regions_leave_nothing() -> None:
    with opened():
        pass
    before = tasks()
    for turn in range(30):
        with LeakCheck(), opened(pages=64, budget=8) as region:
            array = filled(region, mixed(60, seed=turn))
            np.testing.assert_array_equal(array, mixed(60, seed=turn))
            del array
    await_true(lambda: tasks() <= before, "the end of its threads")


def test_several_regions_live_side_by_side() -> None:
    with opened(pages=64, budget=8) as one, opened("zstd", pages=64, budget=5) as two:
        arrays = [filled(region, mixed(60, seed=7)) for region in (one, two)]
        arrays[1][:] = arrays[0][::-1]
        arrays[0][:] = arrays[1][::-1]
        np.testing.assert_array_equal(arrays[0], mixed(60, seed=7))


def test_a_pager_cannot_be_pickled(region: Region) -> None:
    for what in (region.pager, region.pager.allocate(10)):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(what)


# Forks.


def test_a_forked_child_has_no_part_of_it(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)

    def work() -> None:
        for use in (
            lambda: region.pager.allocate(5),
            lambda: region.pager.evict(0, 5),
            lambda: region.pager.pin(0, 5),
            lambda: region.pager.find(array.ctypes.data, 5),
        ):
            with pytest.raises(ForkedProcess):
                use()
        assert len(tasks()) == 1
        region.pager.close()

    in_forked_child(work)
    np.testing.assert_array_equal(array, data)
    array[:] = 3
    region.evict_all()
    assert (array == 3).all()


def test_a_touch_in_a_forked_child_ends_it_and_harms_nobody(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)
    for at in (0, -1):
        end = end_of(partial(array.item, at))
        assert end.signal in (signal.SIGSEGV, signal.SIGBUS), end
    np.testing.assert_array_equal(array, data)


def test_arrays_that_go_in_a_forked_child_stay_with_the_parent() -> None:
    with opened() as region:
        data = noisy(100)
        arrays = [filled(region, data)]

        def work() -> None:
            arrays.clear()
            gc.collect()

        in_forked_child(work)
        np.testing.assert_array_equal(arrays[0], data)


def test_a_region_can_be_made_in_a_forked_child(region: Region) -> None:
    array = filled(region, noisy(100))

    def work() -> None:
        with opened() as own:
            other = filled(own, noisy(200, 5))
            np.testing.assert_array_equal(other, noisy(200, 5))

    in_forked_child(work)
    np.testing.assert_array_equal(array, noisy(100))


@pytest.mark.slow
def test_forks_beside_faults(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    over = threading.Event()

    def touch() -> None:
        while not over.is_set():
            np.testing.assert_array_equal(array, data)

    def fork() -> None:
        try:
            for _ in range(20):
                in_forked_child(lambda: None)
        finally:
            over.set()

    in_threads(3, lambda number: fork() if number == 0 else touch())


# System calls.


def test_system_calls_read_and_write_it(region: Region, tmp_path: Any) -> None:
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    data = noisy(200)
    path = tmp_path / "file"
    data.tofile(path)
    array = region.array(200 * SIZE)
    with path.open("rb", buffering=0) as file:
        assert file.readinto(array) == len(array)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        assert os.preadv(file.fileno(), [array.data], 0) == len(array)
    region.evict_all()
    with path.open("wb", buffering=0) as file:
        assert file.write(array) == len(array)
    assert path.read_bytes() == data.tobytes()


def test_sockets_send_and_receive_it(region: Region) -> None:
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    data = noisy(100)
    one, two = filled(region, data), region.array(100 * SIZE)
    left, right = socket.socketpair()
    with left, right:
        sending = threading.Thread(target=left.sendall, args=(one,))
        sending.start()
        at = 0
        while at < len(two):
            at += right.recv_into(two[at:].data)
        sending.join(HANG_LIMIT_S)
    np.testing.assert_array_equal(two, data)


# Threads.


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        pytest.param("lz4", {"pages": 240, "budget": 2}, id="two pages"),
        pytest.param("lz4", {"pages": 240, "budget": 24, "fault_threads": 1}, id="one thread"),
        pytest.param("zstd", {"pages": 240, "budget": 24, "fault_threads": 4}, id="four threads"),
        pytest.param("lz4", {"pages": 240, "budget": 240}, id="all pages"),
        pytest.param("lz4", {"pages": 96, "budget": 9, "page_size": 16384}, id="16 KiB"),
        pytest.param("lz4", {"pages": 60, "budget": 7, "page_size": 65536}, id="64 KiB"),
    ],
)
def test_threads_find_what_they_wrote_last(algorithm: str, options: dict[str, Any]) -> None:
    with opened(algorithm, **options) as region:
        run_model(region, lambda worker: worker.run(150), seed=options["budget"])
        assert region.figures["lost_pages"] == 0
        region.await_budget()


def test_threads_find_what_they_wrote_last_with_a_backing_file(tmp_path: Any) -> None:
    with opened(pages=240, budget=20, backing=tmp_path, max_pool_bytes=160 << 10) as region:
        run_model(region, lambda worker: worker.run(150), seed=5)
        figures = region.figures
        assert figures["file_reads"] > 0
        assert figures["lost_pages"] == 0


def test_threads_that_fault_on_the_same_pages_at_once() -> None:
    with opened(pages=64, budget=16) as region:
        data = noisy(60)
        array = filled(region, data)
        barrier = threading.Barrier(4)

        def work(number: int) -> None:
            for turn in range(60):
                if number == 0:
                    region.evict_all()
                barrier.wait(HANG_LIMIT_S)
                at = turn % 30 * SIZE
                np.testing.assert_array_equal(array[at : at + 20 * SIZE], data[at : at + 20 * SIZE])

        in_threads(4, work)


def test_eviction_beside_writes_loses_none() -> None:
    """One thread writes to a page again and again while others unmap it."""
    with opened(pages=64, budget=16) as region:
        array = region.array(4 * SIZE, np.uint64)
        over = threading.Event()

        def write() -> None:
            try:
                for turn in range(1, 800):
                    array[:: SIZE // 8] = turn
                    assert (array[:: SIZE // 8] == turn).all()
            finally:
                over.set()

        def evict() -> None:
            while not over.is_set():
                region.evict_all()

        in_threads(2, lambda number: write() if number == 0 else evict())


def test_arrays_come_and_go_in_threads() -> None:
    with opened(pages=600, budget=20) as region:

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            for turn in range(40):
                array = region.array(int(rng.integers(1, 50 * SIZE)))
                assert not array.any()
                array[:] = turn * 4 + number + 1
                region.evict_all()
                assert (array == turn * 4 + number + 1).all()
                del array

        in_threads(4, work)
        assert region.figures["stored_pages"] == region.figures["resident_pages"] == 0
        assert len(region.group) == 0
