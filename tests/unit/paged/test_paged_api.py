"""PagedMemory as its users meet it: arrays, arguments, life and end; what its store, top and metrics say of it."""

from __future__ import annotations

import copy
import errno
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from batchzip.cli.top_screen import screen
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from support.entries import flip
from support.forked import in_forked_child

import batchzip
from batchzip import (
    BadArgument,
    ClosedError,
    ForkedProcess,
    LimitReached,
    NotStorable,
    PagedMemory,
    PagingUnavailable,
    RegionFull,
    paged_empty,
)
from batchzip.cli.snapshot import take_snapshot
from batchzip.core.userfaultfd import WAYS
from batchzip.metrics import collector
from batchzip.paged import Availability, availability, available, machine, memory_of
from batchzip.paged.ranges import range_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096
SIZE, BUDGET = 256 * PAGE, 64 * PAGE

needs_faults = pytest.mark.skipif(not available(), reason=str(available()))


@pytest.fixture
def memory() -> Iterator[PagedMemory]:
    with PagedMemory(SIZE, BUDGET) as memory:
        yield memory


def until(met: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def evict(memory: PagedMemory, array: object) -> int:
    """Evict pages once no thread of the core is at any."""
    memory._pager.check_invariants()
    return memory.evict(array)


def run(script: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def core_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# Arrays.


@needs_faults
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (1000, "f8"),
        ((30, 40, 50), "f4"),
        ([100, 100], np.int16),
        (np.int8(7), "c16"),
        ((), "i8"),
        (5000, bool),
        ((100,), [("id", "i4"), ("name", "U7"), ("at", "M8[ns]")]),
        (10, "(2,3)f4"),
        (9, "S"),
        ((4, 0, 9), "f8"),
        (0, "i1"),
    ],
)
def test_an_array_is_as_numpys_zeros(memory: PagedMemory, shape: Any, dtype: Any) -> None:
    array, expected = memory.array(shape, dtype), np.zeros(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.strides) == (
        expected.shape,
        expected.dtype,
        expected.strides,
    )
    assert array.flags.writeable
    assert array.flags.aligned
    assert array.tobytes() == expected.tobytes()


@needs_faults
def test_what_is_written_is_read_whatever_is_evicted_between(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8)
    expected = np.random.default_rng(3).integers(0, 99, len(array)).astype("f8")
    array[:] = expected
    assert np.array_equal(array, expected)
    assert memory.evict(array) > 0
    assert np.array_equal(array, expected)
    array.sort()
    assert np.array_equal(array, np.sort(expected))
    assert array @ array == pytest.approx(expected @ expected)


@needs_faults
def test_the_pages_of_an_array_are_free_once_it_and_its_views_are_gone(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8)
    array[:] = 7
    view = array[10:20].reshape(2, 5).T
    del array
    assert memory.free_bytes == 0
    assert view.sum() == 70
    del view
    assert memory.free_bytes == SIZE
    assert not memory.array(SIZE // 8).any()  # zeros again


@needs_faults
def test_an_array_that_does_not_fit_says_how_much_is_free(memory: PagedMemory) -> None:
    first, second, third = (memory.array(60 * PAGE, "i1") for _ in range(3))
    with pytest.raises(
        RegionFull, match="takes 409,600 bytes does not fit: 311,296 bytes are free"
    ) as error:
        memory.array(100 * PAGE, "i1")
    assert isinstance(error.value, MemoryError)
    del second
    with pytest.raises(RegionFull, match="557,056 bytes are free, 311,296 in one piece") as error:
        memory.array(100 * PAGE, "i1")
    assert (error.value.wanted_bytes, error.value.free_bytes) == (100 * PAGE, 136 * PAGE)
    for huge in (1 << 40, 1 << 62, (1 << 40, 1 << 40)):
        with pytest.raises(RegionFull):
            memory.array(huge, "f8")
    assert memory.array(76 * PAGE, "i1").nbytes == 76 * PAGE
    del first, third


@needs_faults
@pytest.mark.parametrize("dtype", ["O", [("a", "i4"), ("b", "O")]])
def test_objects_are_refused(memory: PagedMemory, dtype: Any) -> None:
    with pytest.raises(NotStorable, match="Python objects") as error:
        memory.array(10, dtype)
    assert isinstance(error.value, TypeError)


@needs_faults
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(-1, "f8"), ((3, -2), "f8"), (2.5, "f8"), ("ab", "f8"), (None, "f8"), (3, "nope"), (3, 7)],
)
def test_what_is_no_shape_or_type_is_refused(memory: PagedMemory, shape: Any, dtype: Any) -> None:
    with pytest.raises(BadArgument):
        memory.array(shape, dtype)


@needs_faults
def test_pandas_linalg_and_torch_take_its_arrays(memory: PagedMemory) -> None:
    pandas = pytest.importorskip("pandas")
    keys = memory.array(20_000, "i4")
    keys[:] = np.arange(20_000) % 7
    frame = pandas.DataFrame({"key": keys, "value": np.arange(20_000)}, copy=False)
    expected = [sum(range(key, 20_000, 7)) for key in range(7)]
    assert list(frame.groupby("key").value.sum()) == expected
    square = memory.array((100, 100))
    square[:] = np.eye(100) * 3
    assert np.linalg.det(square) == pytest.approx(3.0**100)


@needs_faults
def test_torch_takes_its_arrays(memory: PagedMemory) -> None:
    torch = pytest.importorskip("torch")
    array = memory.array(10_000, "f4")
    tensor = torch.from_numpy(array)
    tensor += 2
    memory.evict(tensor)
    assert array.sum() == 20_000


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": PAGE, "budget": PAGE}, "size must be an integer of at least 8192"),
        ({"size": 0}, "size"),
        ({"size": -5}, "size"),
        ({"size": 1e6}, "size"),
        ({"size": None}, "size"),
        ({"budget": PAGE}, "budget must be an integer in 8192…1048576"),
        ({"budget": SIZE + 1}, "budget must be an integer in 8192…1048576"),
        ({"budget": "1 GiB"}, "budget"),
        ({"size": 1 << 50, "budget": 1 << 49}, "bytes of memory that"),
        ({"page_size": 2048}, "page_size"),
        ({"page_size": 1 << 17}, "page_size"),
        ({"page_size": 5000}, "power of two"),
        ({"algorithm": "deflate"}, "take lz4, lz4hc or zstd"),
        ({"algorithm": "lz4", "level": 3}, "no parameter 'level'"),
        ({"backend": "threads"}, "no parameter 'backend'"),
        ({"fault_threads": 0}, "fault_threads"),
        ({"fault_threads": 65}, "fault_threads"),
        ({"max_backing_bytes": 5}, "backing="),
    ],
)
@needs_faults
def test_a_bad_argument_says_what_would_be_right(arguments: dict[str, Any], words: str) -> None:
    given = {"size": SIZE, "budget": BUDGET, **arguments}
    with pytest.raises(BadArgument, match=words):
        PagedMemory(**given)


@needs_faults
def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(batchzip.UnknownAlgorithm, match="'lz5'"):
        PagedMemory(SIZE, BUDGET, "lz5")


@needs_faults
def test_a_backing_file_without_a_descriptor_is_refused() -> None:
    class Storage:
        def pread(self, length: int, offset: int) -> bytes:
            return bytes(length + 0 * offset)

        def pwrite(self, data: memoryview, offset: int) -> int:
            return len(data) + 0 * offset

    with pytest.raises(BadArgument, match="descriptor"):
        PagedMemory(SIZE, BUDGET, backing=Storage())


@needs_faults
def test_addresses_that_are_out_name_the_limit() -> None:
    script = """
import resource, batchzip
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    batchzip.PagedMemory(1 << 40, 1 << 20)
except batchzip.LimitReached as error:
    assert "ulimit -v" in str(error), error
    print("refused")
with batchzip.PagedMemory(1 << 20, 1 << 19) as memory:
    assert not memory.array(1000).any()
"""
    done = run(script)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


@needs_faults
def test_sizes_and_budgets_are_rounded_up_to_pages() -> None:
    with PagedMemory(3 * PAGE - 7, 2 * PAGE + 1, page_size=PAGE) as memory:
        assert (memory.size, memory.budget, memory.page_size) == (3 * PAGE, 3 * PAGE, PAGE)
        memory.budget = np.int32(2 * PAGE)
        assert memory.budget == 2 * PAGE
        for bad in (PAGE, 4 * PAGE, None, 1 << 60):
            with pytest.raises(BadArgument, match="budget"):
                memory.budget = bad  # type: ignore[assignment]
        assert memory.budget == 2 * PAGE


@needs_faults
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize(
    "codec", [{}, {"algorithm": "zstd", "level": 1}, {"algorithm": "lz4hc"}, {"shuffle": 8}]
)
def test_codecs_and_page_sizes(page_size: int, codec: dict[str, Any]) -> None:
    with PagedMemory(64 * page_size, 4 * page_size, page_size=page_size, **codec) as memory:
        array = memory.array(64 * page_size // 8, "i8")
        array[:] = np.arange(len(array))
        assert np.array_equal(array, np.arange(len(array)))
        until(lambda: memory.statistics.resident_bytes <= memory.budget)
        now = memory.statistics
        assert now.evicted_pages >= 60
        assert 0 < now.compressed_bytes < array.nbytes


@pytest.mark.parametrize("call", ["evict", "prefetch", "resident"])
@needs_faults
def test_memory_that_is_not_ours_is_refused(memory: PagedMemory, call: str) -> None:
    use = getattr(memory, call)
    with PagedMemory(SIZE, BUDGET) as other:
        for foreign in (np.zeros(1000), other.array(10), bytearray(100)):
            with pytest.raises(BadArgument, match="no array of this memory"):
                use(foreign)
    for nothing in ([1, 2], None, "a", 3):
        with pytest.raises(NotStorable):
            use(nothing)
    array = memory.array(10)
    beyond = np.lib.stride_tricks.as_strided(array, (PAGE,), (8,))
    with pytest.raises(BadArgument):
        use(beyond)
    with pytest.raises(BadArgument, match="'normal', 'sequential', 'random'"):
        memory.advise(array, "fast")
    with pytest.raises(BadArgument):
        memory.advise(np.zeros(3), "random")


@needs_faults
def test_views_of_every_kind_cover_their_bytes() -> None:
    with PagedMemory(SIZE, SIZE) as memory:
        array = memory.array((64, PAGE), "i1")
        array[:] = 1
        assert evict(memory, array[3:5]) == 2
        assert evict(memory, array[10:20:3]) == 10  # with the gaps between
        array[:] = 2
        assert evict(memory, array[20:10:-1]) == 10
        array[:] = 3
        assert evict(memory, array[:, 5]) == 64
        assert evict(memory, array[7:7]) == evict(memory, np.zeros(0)) == 0
        memory.prefetch(array[0:0])
        memory.advise(array[::2], "random")
        memory.advise(array, "normal")
        with memory.resident(array[0:0]):
            assert memory.statistics.pinned_pages == 0
        array[5] = 4
        assert evict(memory, memoryview(array[5])) == 1
        assert (array[5] == 4).all()
        assert (array[6:] == 3).all()


def test_the_range_of_an_array_is_from_its_lowest_byte_to_its_highest() -> None:
    array = np.zeros((10, 20), "i4")
    start = array.ctypes.data
    assert range_of(array) == (start, 800)
    assert range_of(array[::-1, ::-1]) == (start, 800)
    assert range_of(array[2:4, 5:10:2]) == (start + 180, 80 + 2 * 8 + 4)
    assert range_of(np.broadcast_to(array[0, :1], (50, 1))) == (start, 4)
    assert range_of(array[3:3])[1] == 0


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
    until(lambda: memory.statistics.prefetched_pages == 32)
    faults = memory.statistics.faults_missing
    assert np.array_equal(array, np.arange(len(array)))
    assert memory.statistics.faults_missing == faults


@needs_faults
def test_a_lowered_budget_is_kept(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    memory.budget = 8 * PAGE
    until(lambda: memory.statistics.resident_bytes <= 8 * PAGE)
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


# The store.


@needs_faults
def test_its_store_is_a_store_and_its_group_is_the_pagers_alone(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    evict(memory, array)
    store, group = memory.store, memory.store.groups["region"]
    assert store.check().ok
    assert len(group) == memory.statistics.stored_pages
    assert group.load(3) == array[512 * 3 : 512 * 4].tobytes()
    evict(memory, array)
    for change in (
        lambda: group.store(0, bytes(PAGE)),
        lambda: group.load(0, exclusive=True),
        lambda: group.load_many([0, 1], exclusive=True),
        lambda: group.invalidate(0, 5),
        lambda: group.recompress("zstd"),
        lambda: store.drop_group("region"),
        lambda: setattr(group, "max_bytes", 100),
    ):
        with pytest.raises(BadArgument, match="PagedMemory"):
            change()
    store.store(7, bytes(PAGE))
    with batchzip.Engine("zstd", level=1) as other:
        store.engine = other
        store.store(8, os.urandom(100).ljust(PAGE))
        store.recompress("lz4hc")
        array += 1
        memory.evict(array)
        assert np.array_equal(array, np.arange(1, len(array) + 1))
        memory.evict(array)
        store.compact()
    assert np.array_equal(array, np.arange(1, len(array) + 1))


@needs_faults
def test_a_name_of_ones_own_for_the_group() -> None:
    with PagedMemory(SIZE, BUDGET, name="tiles") as memory:
        assert list(memory.store.groups) == ["tiles"]
    with pytest.raises(BadArgument, match="name"):
        PagedMemory(SIZE, BUDGET, name="")


@needs_faults
def test_cold_pages_go_to_the_backing_file_when_the_pool_is_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    with PagedMemory(8 * SIZE, 16 * PAGE, backing=tmp_path, max_pool_bytes=64 * PAGE) as memory:
        array = memory.array(8 * SIZE // 8, "i8")
        expected = rng.integers(0, 1 << 20, len(array))
        for start in range(0, len(array), 8192):
            array[start : start + 8192] = expected[start : start + 8192]
        until(lambda: memory.statistics.resident_bytes <= memory.budget)
        now = memory.statistics
        assert now.file_bytes > 0
        assert memory.store.counters.written_back_pages > 0
        assert np.array_equal(array, expected)
        assert memory.statistics.file_reads > 0
        assert memory.check().ok


@needs_faults
def test_without_room_the_budget_is_exceeded_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with PagedMemory(SIZE, BUDGET, max_pool_bytes=32 * PAGE) as memory:
        array = memory.array(SIZE, "u1")
        expected = np.random.default_rng(1).integers(0, 256, SIZE).astype("u1")
        array[:] = expected
        until(lambda: caplog.records)
        assert memory.statistics.over_budget > 0
        assert memory.statistics.resident_bytes > memory.budget
        assert np.array_equal(array, expected)
        [record] = caplog.records
        assert (record.name, record.levelno) == ("batchzip", logging.WARNING)
        for words in ("more than its budget of 262,144", "131,072 bytes", "raise max_pool_bytes"):
            assert words in record.message
        memory.store.max_pool_bytes = None
        until(lambda: memory.statistics.resident_bytes <= memory.budget)
        assert np.array_equal(array, expected)
        assert len(caplog.records) == 1


@needs_faults
def test_a_full_backing_file_loses_nothing_and_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits: dict[str, Any] = {"max_pool_bytes": 128 * PAGE, "max_backing_bytes": 256 * PAGE}
    with PagedMemory(4 * SIZE, BUDGET, backing=tmp_path, **limits) as memory:
        array = memory.array(4 * SIZE, "u1")
        expected = np.random.default_rng(1).integers(0, 256, 4 * SIZE).astype("u1")
        array[:] = expected
        until(lambda: any("the backing file takes nothing" in each for each in caplog.messages))
        assert memory.statistics.file_bytes > 0
        assert memory.statistics.resident_bytes > memory.budget
        assert np.array_equal(array, expected)
        memory.store.max_backing_bytes = None
        until(lambda: memory.statistics.resident_bytes <= memory.budget)
        assert np.array_equal(array, expected)
        assert memory.statistics.lost_pages == 0


@needs_faults
def test_check_names_damaged_pages_by_array_and_offset(memory: PagedMemory) -> None:
    first = memory.array(5 * PAGE, "i1")
    array = memory.array(32 * PAGE // 8, "i8")
    array[:] = np.arange(len(array))
    evict(memory, array)
    assert memory.check().ok
    assert memory.check().pages == 32
    flip(memory.store.groups["region"], 5 + 3)
    report = memory.check()
    assert not report.ok
    [found] = report.damaged
    assert (found.address, found.offset) == (array.ctypes.data, 3 * PAGE)
    assert f"byte 12,288 of the array at {array.ctypes.data:#x}" in str(found)
    with pytest.raises((batchzip.CorruptPage, batchzip.PageError)) as error:
        memory.resident(array).__enter__()
    assert error.value.__notes__ == [str(found)]
    assert memory.statistics.pinned_pages == 0
    assert array[0] == 0
    del first


# Life and end.


@needs_faults
def test_use_after_close_is_refused_and_closing_again_does_nothing() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    array = memory.array(10)
    memory.close()
    memory.close()
    assert memory.closed
    assert repr(memory) == "<PagedMemory, closed>"
    for use in (
        lambda: memory.array(3),
        lambda: memory.evict(array),
        lambda: memory.prefetch(array),
        lambda: memory.resident(array),
        lambda: memory.advise(array, "random"),
        lambda: memory.statistics,
        lambda: memory.budget,
        lambda: setattr(memory, "budget", BUDGET),
        memory.check,
        memory.__enter__,
        lambda: memory.allocator().__enter__(),
    ):
        with pytest.raises(ClosedError):
            use()


@needs_faults
def test_closing_the_store_closes_the_memory() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    memory.store.close()
    with pytest.raises(ClosedError):
        memory.array(3)
    memory.close()


@needs_faults
def test_a_memory_lives_as_long_as_its_arrays() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    gone = weakref.ref(memory)
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    view = array[::3]
    store = weakref.ref(memory.store)
    del memory, array
    assert gone() is not None
    assert np.array_equal(view, np.arange(0, SIZE // 8, 3))
    assert memory_of(view) is gone()
    del view
    assert gone() is None
    gc.collect()
    assert store() is None


@needs_faults
def test_paged_empty_is_one_array_with_a_memory_of_its_own() -> None:
    array = paged_empty((300, 512), "i8", budget=BUDGET)
    array[:] = np.arange(300 * 512).reshape(300, 512)
    memory = memory_of(array[5:, ::2])
    assert (memory.size, memory.budget, memory.free_bytes) == (300 * PAGE, BUDGET, 0)
    assert memory.statistics.evicted_pages > 200
    assert np.array_equal(array.ravel(), np.arange(300 * 512))
    gone = weakref.ref(memory)
    del memory, array
    assert gone() is None
    assert paged_empty(10, budget=1 << 40).sum() == 0
    assert paged_empty((3, 0), budget=BUDGET).shape == (3, 0)
    assert memory_of(paged_empty(9, budget=BUDGET, page_size=16384)).page_size == 16384
    with pytest.raises(BadArgument, match="budget"):
        paged_empty(10, budget=5)
    with pytest.raises(NotStorable):
        paged_empty(10, "O", budget=BUDGET)
    with pytest.raises(BadArgument, match="no PagedMemory"):
        memory_of(np.zeros(3))


@needs_faults
def test_pickling_is_refused_with_a_reason_and_arrays_are_copied(memory: PagedMemory) -> None:
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied: pickle its arrays"):
            make(memory)
    array = memory.array(10)
    array[:] = 3
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)


@needs_faults
def test_a_forked_child_is_refused_and_the_parent_goes_on(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))

    def use() -> None:
        for call in (lambda: memory.array(3), lambda: memory.evict(array), memory.check):
            with pytest.raises(ForkedProcess):
                call()
        memory.close()

    in_forked_child(use)
    assert np.array_equal(array, np.arange(len(array)))


@needs_faults
def test_a_forked_child_that_drops_everything_harms_nobody() -> None:
    array = paged_empty(SIZE // 8, "i8", budget=BUDGET)
    array[:] = np.arange(len(array))
    held = [array]
    del array

    def drop() -> None:
        held.clear()
        gc.collect()

    in_forked_child(drop)
    assert np.array_equal(held[0], np.arange(SIZE // 8))


ENDS = {
    "array alive": "",
    "memory dropped": "del memory",
    "in a cycle": "cycle = [array, memory]; cycle.append(cycle); del array, memory",
    "touched by a finalizer": """
class Late:
    def __init__(self): self.array = array
    def __del__(self): assert self.array[-1] + self.array[0] == (1 << 19) - 1
late = Late()
late.me = late
""",
    "touched at exit": "import atexit; atexit.register(lambda: print(array.sum() > 0))",
    "threads that touch": """
import threading
def touch():
    while True: array.sum()
for _ in range(3): threading.Thread(target=touch, daemon=True).start()
""",
    "closed": "memory.close()",
    "closed at exit": "import atexit; atexit.register(memory.close)",
    "resident": "keep = memory.resident(array[:10]); keep.__enter__()",
    "new arrays from it": "keep = memory.allocator(); keep.__enter__(); more = np.ones(1 << 17)",
}


@needs_faults
@pytest.mark.parametrize("end", ENDS)
def test_an_interpreter_ends_with_live_arrays(end: str) -> None:
    script = f"""
import numpy as np, batchzip
memory = batchzip.PagedMemory(8 << 20, 1 << 20)
array = memory.array(1 << 19, "i8")
array[:] = np.arange(1 << 19)
{ENDS[end]}
"""
    done = run(script)
    assert (done.returncode, done.stderr) == (0, ""), done


@needs_faults
def test_touching_after_close_ends_in_sigbus() -> None:
    script = """
import numpy as np, batchzip
with batchzip.PagedMemory(8 << 20, 1 << 20) as memory:
    array = memory.array(1 << 19, "i8")
    array[:] = 1
print("closed", flush=True)
array.sum()
"""
    done = run(script)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "closed\n"), done


@needs_faults
def test_without_a_thread_for_the_watcher_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise LimitReached(errno.EAGAIN, f"{thread.name} cannot be started")

    monkeypatch.setattr("batchzip.paged.memory.begin", refuse)
    tasks = core_threads()
    with pytest.raises(LimitReached, match="batchzip-pager"):
        PagedMemory(SIZE, BUDGET)
    gc.collect()
    until(lambda: core_threads() == tasks)


# New arrays of NumPy's.


@needs_faults
def test_numpy_makes_large_arrays_in_it(memory: PagedMemory) -> None:
    with memory.allocator(threshold=8 * PAGE):
        array, zeros, small = np.empty(16 * PAGE, "i1"), np.zeros(16 * PAGE, "i1"), np.ones(10)
        both = array + zeros
        with pytest.raises(MemoryError):
            np.empty(2 * SIZE, "i1")
        elsewhere: list[Any] = []
        thread = threading.Thread(target=lambda: elsewhere.append(np.empty(16 * PAGE, "i1")))
        thread.start()
        thread.join()
    outside = np.empty(16 * PAGE, "i1")
    assert memory.free_bytes == SIZE - 48 * PAGE
    assert memory.evict(both) >= 0
    for foreign in (small, outside, elsewhere[0]):
        with pytest.raises(BadArgument):
            memory.evict(foreign)
    zeros.resize(32 * PAGE, refcheck=False)
    assert not zeros.any()
    assert memory.free_bytes == SIZE - 64 * PAGE
    array[:] = 3
    array.resize(10, refcheck=False)
    assert array.tolist() == [3] * 10
    del zeros, both
    assert memory.free_bytes == SIZE
    with pytest.raises(BadArgument, match="threshold"), memory.allocator(threshold=1):
        raise AssertionError


@needs_faults
def test_numpys_arrays_outlive_statement_and_memory() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    with memory.allocator(threshold=PAGE):
        array, small = np.arange(SIZE // 16), np.ones(3)
    gone = weakref.ref(memory)
    del memory
    assert array.sum() == sum(range(SIZE // 16))
    del array
    assert gone() is None  # a small one keeps nothing
    assert small.sum() == 3
    memory = PagedMemory(SIZE, BUDGET)
    with memory.allocator(threshold=PAGE):
        array = np.arange(SIZE // 16)
        memory.close()
        assert np.ones(SIZE).sum() == SIZE  # as without it
    del array


# What others see.


@needs_faults
def test_top_and_status_show_the_region(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    with batchzip.attach(str(memory.store.share())) as view:
        before = take_snapshot(view)
        array.sum()
        now = take_snapshot(view)
    region = now.status["regions"]["region"]
    assert region["pages"] == 256
    since = region["latency"] - before.status["regions"]["region"]["latency"]
    assert since.count > 0
    assert since.mean_s > 0
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(screen(now, before, height=None))
    shown = console.export_text()
    console.file.close()
    [line] = [line for line in shown.splitlines() if line.startswith("region ") and "MiB" in line]
    assert line.count("µs") + line.count(" ms") == 3
    assert "1.0 MiB" in line
    assert "256.0 KiB" in line or "256 KiB" in line
    for heading in ("faults/s", "hits", "p50", "p99"):
        assert heading in shown


@needs_faults
def test_metrics_have_the_region(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    registry = CollectorRegistry()
    registry.register(collector(memory.store))
    text = generate_latest(registry).decode()
    figures = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("batchzip_region")
    )
    now = memory.statistics
    assert (
        float(figures['batchzip_region_evicted_pages_total{group="region"}']) <= now.evicted_pages
    )
    assert figures['batchzip_region_size_pages{group="region"}'] == "256.0"
    assert figures['batchzip_region_budget_pages{group="region"}'] == "64.0"
    counts = [
        float(value)
        for name, value in figures.items()
        if name.startswith("batchzip_region_fault_seconds_bucket")
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert float(figures['batchzip_region_fault_seconds_sum{group="region"}']) > 0
    memory.close()
    assert b"region" not in b"".join(
        line for line in generate_latest(registry).splitlines() if not line.startswith(b"#")
    )


# What this system offers.


def test_each_way_and_what_is_missing_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(way: str | None, features: int, failed: dict[str, int]) -> Availability:
        monkeypatch.setattr(availability, "probe", lambda: (way, features, failed))
        return available()

    everything = (1 << 17) - 1
    best = found("syscall", everything, {})
    assert best
    assert str(best) == "Paged memory works here, by the system call userfaultfd."
    third = found("user mode", everything, {"syscall": errno.EPERM, "device": errno.EACCES})
    assert third
    for words in ("CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd=1", "resident", "chmod", "EFAULT"):
        assert words in str(third)
    old = found("syscall", everything & ~(1 << 14 | 1 << 15), {})
    assert old
    assert "6.7" in str(old)
    assert "6.6" in str(old)
    older = found("syscall", 1 << 5, {})
    assert not older
    assert "5.14" in str(older)
    every = dict.fromkeys(WAYS, errno.ENOSYS)
    none = found(None, 0, every)
    assert not none
    assert str(none).startswith("Paged memory does not work here")
    assert str(none).count("Not by") == 3
    with pytest.raises(PagingUnavailable, match="does not work here") as error:
        PagedMemory(SIZE, BUDGET)
    assert isinstance(error.value, OSError)
    found(None, 0, dict.fromkeys(WAYS, errno.EMFILE))
    with pytest.raises(LimitReached, match="RLIMIT_NOFILE"):
        PagedMemory(SIZE, BUDGET)


NOBODY = """
import os, batchzip
batchzip.PagedMemory(1 << 20, 1 << 16).close()  # nobody may not be able to import anything
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ways = batchzip.paged.available()
print(ways)
if ways.way == "user mode":
    memory = batchzip.PagedMemory(1 << 20, 1 << 16)
    array = memory.array(1 << 17, "i8")
    array[:] = range(1 << 17)
    assert array.sum() == sum(range(1 << 17))
    reading, writing = os.pipe()
    memory.evict(array)
    os.write(writing, bytes(8))
    try:
        os.readv(reading, [array[:1]])
    except OSError as error:
        print(error.strerror)
    with memory.resident(array[:1]) as part:
        assert os.readv(reading, [part]) == 8
    assert array[1] == 1
"""


@needs_faults
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_nobody_has_user_mode_only_and_resident_for_system_calls() -> None:
    done = run(NOBODY)
    assert done.returncode == 0, done.stderr
    if "user mode only" in done.stdout:
        assert "EFAULT" in done.stdout
        assert done.stdout.splitlines()[-1] == "Bad address"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8 << 30),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.max": "max\n"}, 8 << 30),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "1048576\n"}, 1 << 20),
        ("4:memory:/a\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 62}\n"}, 8 << 30),
    ],
)
def test_the_memory_there_is_is_the_least_of_what_limits_it(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    mounts = (
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    for name, text in {
        "proc/meminfo": f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": mounts,
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    limit = machine.memory_limit(tmp_path)
    assert limit is not None
    assert limit[0] == expected
