"""Memory of a region is had, given back, counted and closed; nothing is left."""

from __future__ import annotations

import gc
import pickle
import signal
import threading
from typing import Any

import numpy as np
import pytest
from support.paged_region import (
    HANG_LIMIT_S,
    Region,
    end_of,
    filled,
    mappings,
    mixed,
    needs_paging,
    noisy,
    opened,
)
from support.waiting import await_true, tasks

from batchzip import BadArgument, ClosedError, Engine, SwapStore
from batchzip.core.pager import Pager
from batchzip.core.region import AccessAdvice
from batchzip.testing import LeakCheck

pytestmark = needs_paging


SIZE = 4096


# Allocation.


@pytest.mark.slow
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


def test_an_array_too_large_is_refused_and_freed_pages_are_used_again(region: Region) -> None:
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


@pytest.mark.slow
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
        region.pager.check_invariants()  # waits for what is under way
        assert region.figures["stored_pages"] + region.figures["resident_pages"] == 100
        views.pop()
    assert region.figures["stored_pages"] == region.figures["resident_pages"] == 0


@pytest.mark.slow
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


def test_figures_count_pages_and_faults(region: Region) -> None:
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


def test_close_returns_the_count_of_live_arrays_and_wakes_waiters() -> None:
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


@pytest.mark.slow
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
