"""Paged memory beside signals, the GIL, locked memory and direct I/O loses nothing."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.paged_region import content, end_of, filled, needs_paging, needs_root, opened
from support.scripts import check_ended_well, run
from support.waiting import await_true, tasks

from batchzip.testing.plain import in_threads

if TYPE_CHECKING:
    import numpy.typing as npt


pytestmark = needs_paging


SIZE = 4096


def text(pages: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    return content("text", seed, pages * SIZE)


# Signals.


@pytest.mark.slow
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals")
def test_signals_by_the_thousand_in_the_middle_of_faults() -> None:
    with opened(budget=16) as region:
        data = text(150)
        array, other = filled(region, data), filled(region, text(60, 2))
        handled = 0

        def handle(_number: int, _frame: Any) -> None:
            nonlocal handled
            at = handled % 60 * SIZE
            other[at] += 1
            handled += 1

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            rng = np.random.default_rng(1)
            while handled < 100:
                chosen = rng.integers(0, len(data), 500)
                array[chosen] += 1
                data[chosen] = array[chosen]
                region.evict(array[: 20 * SIZE])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        np.testing.assert_array_equal(array, data)
        expected = text(60, 2)
        for turn in range(handled):
            expected[turn % 60 * SIZE] += 1
        np.testing.assert_array_equal(other, expected)


# The GIL.


@pytest.mark.slow
def test_a_thread_that_faults_with_the_gil_waits_for_nobody_who_needs_it(tmp_path: Path) -> None:
    """The budget is exceeded if a thread with the GIL faults, because making room needs Python."""
    with opened(budget=8, backing=tmp_path, max_pool_bytes=64 << 10) as region:
        data = content("noise", 1, 200 * SIZE)
        array = filled(region, data)
        over = threading.Event()
        counted = [0, 0]

        def count(number: int) -> None:
            while not over.is_set():
                counted[number] += 1

        def touch() -> None:
            view = array.data
            try:
                for _ in range(20):
                    assert view.tobytes() == data.tobytes()
                    view[:] = data.data
                    view[::-1].tobytes()
            finally:
                over.set()

        in_threads(3, lambda number: touch() if number == 2 else count(number))
        assert all(counted)
        assert region.figures["lost_pages"] == 0


# Memory that the kernel treats in other ways.


def test_locked_memory_loses_no_write() -> None:
    """MADV_DONTNEED refuses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(pages=64, budget=32) as region:
        array = region.array(2 * SIZE, np.uint64)
        if libc.mlock(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)):
            pytest.skip("memory may not be locked here")
        over = threading.Event()

        def write() -> None:
            try:
                for turn in range(1, 2000):
                    array[:: SIZE // 8] = turn
                    assert (array[:: SIZE // 8] == turn).all()
            finally:
                over.set()

        def evict() -> None:
            while not over.is_set():
                region.evict(array)

        in_threads(2, lambda number: write() if number else evict())


def test_direct_io_through_pinned_pages(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = content("noise", 1, 64 * SIZE)
    data.tofile(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no direct I/O")
    try:
        with opened(budget=32) as region:
            array = region.array(64 * SIZE)
            other = filled(region, text(150))
            for start in range(0, 64, 16):
                part = array[start * SIZE : (start + 16) * SIZE]
                pages = region.pages_of(part)
                region.pager.pin(*pages)
                assert os.preadv(fd, [part.data], start * SIZE) == len(part)
                region.pager.unpin(*pages)
                assert (other == text(150)).all()
            np.testing.assert_array_equal(array, data)
    finally:
        os.close(fd)


def test_other_ways_to_the_memory_of_a_process() -> None:
    """/proc/PID/mem, as debuggers use it, does not wait for pages that are elsewhere."""
    with opened(budget=32) as region:
        data = text(100)
        array = filled(region, data)
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            fd, address = memory.fileno(), array.ctypes.data
            for at in range(0, len(data), SIZE):
                with contextlib.suppress(OSError):
                    assert os.pread(fd, SIZE, address + at) == data[at : at + SIZE].tobytes()
            assert array[50 * SIZE] == data[50 * SIZE]
            assert os.pwrite(fd, b"xyz", address + 50 * SIZE) == 3
            data[50 * SIZE : 50 * SIZE + 3] = list(b"xyz")
        region.evict_all()
        np.testing.assert_array_equal(array, data)


# Without privileges.


AS_NOBODY = """
import os, sys
import numpy as np
from support.paged_region import opened
with opened(pages=256, budget=32) as region:
    assert region.pager.way == "user mode", region.pager.way
    data = np.random.default_rng(1).integers(0, 6, 200 * 4096, np.uint8)
    array = region.array(len(data))
    array[:] = data
    assert (array == data).all()
    region.evict_all()
    assert (array[::-1] == data[::-1]).all()
    assert region.pager.tracks_writes == {tracks}, region.pager.tracks_writes

    # System calls may not fault. They change only what is in memory or pinned.
    region.evict_all()
    part = array[: 16 * 4096]
    zero = os.open("/dev/zero", os.O_RDONLY)
    try:
        os.readv(zero, [part])
    except OSError as error:
        assert error.errno == 14, error
    else:
        raise AssertionError("it read")
    pages = region.pages_of(part)
    region.pager.pin(*pages)
    assert os.readv(zero, [part]) == len(part)
    data[: len(part)] = 0
    reading, writing = os.pipe()
    assert os.write(writing, part) == len(part)
    region.pager.unpin(*pages)
    region.evict_all()
    assert (array == data).all()
"""


@pytest.mark.slow
@needs_root
def test_an_unprivileged_program_uses_it_in_user_mode() -> None:
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("here anybody may handle all faults")
    with opened() as region:
        tracks = region.pager.tracks_writes
    source = AS_NOBODY.format(tracks=tracks)
    try:
        done = run(["-c", source], user=65534, group=65534, extra_groups=[], cwd="/")
    except PermissionError:
        pytest.skip("others may not run this Python")
    if "Permission denied" in done.stderr or "No module" in done.stderr:
        pytest.skip("others may not read this Python's modules")
    check_ended_well(done)


@pytest.mark.slow
@needs_root
def test_a_program_that_gave_up_its_privileges_uses_it_in_user_mode() -> None:
    """Its /proc/self belongs to root: the kernel does not tell it which pages were written to."""
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("here anybody may handle all faults")

    def work() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        exec(compile(AS_NOBODY.format(tracks="False"), "as nobody", "exec"), {})

    end = end_of(work)
    assert end.signal == 0, end


# Nothing grows.


@pytest.mark.slow
def test_nothing_grows_with_what_comes_and_goes() -> None:
    def life(seed: int) -> None:
        with opened(pages=256, budget=16) as region:
            arrays = [filled(region, text(40, seed + number)) for number in range(5)]
            for turn in range(10):
                arrays[turn % 5] = None  # type: ignore[call-overload]
                arrays[turn % 5] = filled(region, text(40, turn))
            region.evict(arrays[0])
            region.pager.prefetch(*region.pages_of(arrays[0]))

    def held() -> tuple[int, int, int, int]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
        return (
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            len(tasks()),
            Path("/proc/self/maps").read_text().count("\n"),
            resident,
        )

    for seed in range(5):
        life(seed)
    before = held()
    for seed in range(12):
        life(seed)
    after = held()
    assert after[0] == before[0]
    await_true(lambda: len(tasks()) <= before[1], "the end of its threads")
    assert after[2] <= before[2] + 8
    assert after[3] <= before[3] + (8 << 20)
