"""What is asked of pages: to be resident, prefetched, or fewer; and the figures that say so."""

from __future__ import annotations

import gc
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.paged_memory import PAGE, SIZE, evict, needs_faults
from support.waiting import await_true

from batchzip import (
    BadArgument,
    PagedMemory,
)

if TYPE_CHECKING:
    from pathlib import Path

# What is said about arrays.


@needs_faults
def test_resident_keeps_pages_nested_and_in_several_threads(memory: PagedMemory) -> None:
    array = memory.array(SIZE, "i1")
    array[:] = 5
    with memory.resident(array[: 8 * PAGE]) as part:
        assert part.base is not None
        assert memory.statistics.pinned_pages == 8
        with memory.resident(array[: 4 * PAGE]):
            assert memory.evict(array[: 8 * PAGE]) == 0
        assert memory.statistics.pinned_pages == 8
        assert memory.evict(array[: 8 * PAGE]) == 0
        assert memory.statistics.pinned_bytes == 8 * PAGE

        def use(first: int) -> None:
            with memory.resident(array[first * PAGE : (first + 4) * PAGE]):
                assert (array[first * PAGE : (first + 4) * PAGE] == 5).all()

        threads = [threading.Thread(target=use, args=(n,)) for n in (0, 6, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert memory.statistics.pinned_pages == 0
    assert memory.evict(array) > 0


@pytest.mark.slow
@needs_faults
def test_resident_ends_whatever_happens(memory: PagedMemory) -> None:
    array = memory.array(100 * PAGE, "i1")
    with pytest.raises(ZeroDivisionError), memory.resident(array[:PAGE]):
        _ = 1 / 0
    with pytest.raises(BadArgument), memory.resident(array):  # more than the budget
        raise AssertionError
    dropped = memory.resident(array[:PAGE])
    dropped.__enter__()
    assert memory.statistics.pinned_pages == 1
    del dropped
    gc.collect()
    assert memory.statistics.pinned_pages == 0
    with memory.resident(array[:PAGE]):
        memory.close()


@pytest.mark.slow
@needs_faults
def test_resident_is_left_whole_by_signals(memory: PagedMemory) -> None:
    array = memory.array(100 * PAGE, "i1")

    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        rng = np.random.default_rng(5)
        for wait in rng.uniform(2e-6, 4e-4, 200):
            try:
                signal.setitimer(signal.ITIMER_REAL, wait)
                while True:
                    with memory.resident(array[: 3 * PAGE]):
                        pass
            except Alarm:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert memory.statistics.pinned_pages == 0


@needs_faults
def test_a_system_call_reads_into_what_is_resident(memory: PagedMemory, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 64)
    array = memory.array(16 * 1024, "u1")
    memory.evict(array)
    with path.open("rb", buffering=0) as file, memory.resident(array) as part:
        assert file.readinto(part) == 16 * 1024
    assert array.tobytes() == path.read_bytes()


@needs_faults
def test_prefetch_brings_pages_before_they_are_touched(memory: PagedMemory) -> None:
    array = memory.array(32 * PAGE // 8, "i8")
    array[:] = np.arange(len(array))
    evict(memory, array)
    assert memory.statistics.stored_pages == 32
    memory.prefetch(array)
    await_true(lambda: memory.statistics.prefetched_pages == 32)
    faults = memory.statistics.faults_missing
    assert np.array_equal(array, np.arange(len(array)))
    assert memory.statistics.faults_missing == faults


@needs_faults
def test_a_lowered_budget_is_kept(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    memory.budget = 8 * PAGE
    await_true(lambda: memory.statistics.resident_bytes <= 8 * PAGE)
    assert memory.statistics.budget_bytes == 8 * PAGE
    memory.budget = SIZE
    assert np.array_equal(array, np.arange(len(array)))


@needs_faults
def test_statistics_add_up(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    now = memory.statistics
    assert now.size_bytes == SIZE
    assert now.candidate_pages <= now.resident_pages <= 64
    assert now.resident_bytes == now.resident_pages * PAGE
    assert now.stored_pages >= 192
    assert now.saved_bytes == now.stored_pages * PAGE - now.compressed_bytes > 0
    assert now.file_bytes == now.lost_pages == now.over_budget == 0
    array.sum()
    later = memory.statistics
    assert later.restored_pages + later.readahead_pages >= 192
    assert 0 < later.latency_p50_s <= later.latency_p90_s <= later.latency_p99_s < 10
    assert 0 <= later.hit_ratio <= 1


@pytest.mark.slow
@needs_faults
def test_garbage_that_has_arrays_may_be_collected_while_figures_are_read(
    memory: PagedMemory,
) -> None:
    before = gc.get_threshold()
    pager = memory._pager
    try:
        for read in (pager.figures, pager.latencies, pager.check_invariants):
            for allocations in range(1, 16):
                gc.collect(0)
                gc.set_threshold(1 << 20)
                cycle: list[Any] = [memory.array(10)]
                cycle.append(cycle)
                del cycle
                gc.set_threshold(allocations)
                read()  # it makes objects, and so collects
    finally:
        gc.set_threshold(*before)
