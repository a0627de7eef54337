"""No touch hangs or is wrong if the program changes mappings or the kernel refuses requests."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.entries import flip
from support.paged_region import assert_sigbus, end_of, filled, needs_paging, noisy, opened
from support.system_calls import LIBC, needs_filters, refuse
from support.waiting import await_true

from batchzip.core.userfaultfd import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

SIZE = mmap.PAGESIZE
MADV_REMOVE, MADV_DONTDUMP, MADV_DONTNEED_LOCKED = 9, 16, 24

pytestmark = [needs_paging, pytest.mark.skipif(SIZE != 4096, reason="pages of other machines")]
needs_kernel_faults = pytest.mark.skipif(
    probe()[0] == "user mode", reason="the kernel may not fault here"
)


def part_of(array: Bytes, page: int, count: int = 1) -> Bytes:
    """Return some machine pages of an array."""
    return array[page * SIZE : (page + count) * SIZE]


def to_kernel(call: Callable[..., int], part: Bytes, option: int) -> None:
    """Make a system call about a range of memory."""
    done = call(ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(len(part)), option)
    assert done == 0, os.strerror(ctypes.get_errno())


def accesses() -> set[str]:
    """Return what may be done to the memory of regions."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[1] for line in lines if "batchzip-paged" in line}


# Marks of lost pages.


@needs_kernel_faults
def test_a_lost_page_of_which_a_part_has_no_mark_any_more_is_a_sigbus() -> None:
    """The other parts cannot be marked again: that is no failure."""

    def work() -> None:
        with opened(page_size=4 * SIZE) as region:
            array = filled(region, noisy(80))
            region.evict_all()
            flip(region.group, 5)
            with contextlib.suppress(OSError):
                os.pwrite(os.memfd_create("any"), part_of(array, 20).data, 0)
            to_kernel(LIBC.madvise, part_of(array, 21), mmap.MADV_DONTNEED)
            part_of(array, 21).sum()

    assert_sigbus(end_of(work), 5)


@needs_kernel_faults
@pytest.mark.parametrize(
    "rounds", [pytest.param(1), pytest.param(50, marks=pytest.mark.stress, id="stress")]
)
def test_threads_that_touch_a_lost_page_at_once_find_its_mark(rounds: int, capfd: Any) -> None:
    """Each thread has a fault of its own. The second may be served after the page was lost."""
    count = 4
    for _ in range(rounds):
        with opened(budget=16, fault_threads=count) as region, contextlib.ExitStack() as made:
            array = filled(region, noisy(100))
            region.evict_all()
            region.store.close()
            bell = made.enter_context(os.fdopen(os.eventfd(0), "r+b", buffering=0))
            polls = [made.enter_context(select.epoll()) for _ in range(count)]
            for poll in polls:
                poll.register(bell, select.EPOLLIN)

            def touch(poll: select.epoll, page: int) -> int:
                """Wait for the bell, in the kernel, which writes what rang to the page."""
                where = array.ctypes.data + page * SIZE  # noqa: B023
                return int(LIBC.epoll_wait(poll.fileno(), ctypes.c_void_p(where), 1, -1))

            with ThreadPoolExecutor(count) as pool:
                for page in range(100):
                    touches = [pool.submit(touch, poll, page) for poll in polls]
                    bell.write((1).to_bytes(8, sys.byteorder))
                    assert {each.result() for each in touches} == {-1}
                    bell.read(8)
            assert accesses() == {"rw-s"}
            await_true(lambda: region.figures["lost_pages"] == 100, "the last one")
    assert capfd.readouterr().err.count("A touch raises SIGBUS.\n") == rounds * 100


# Mappings that the program changes.

DIVISIONS: dict[str, Callable[[Bytes], None]] = {
    "locked": lambda part: to_kernel(LIBC.mlock, part, 0),
    "without dump": lambda part: to_kernel(LIBC.madvise, part, MADV_DONTDUMP),
    "read-only": lambda part: to_kernel(LIBC.mprotect, part, mmap.PROT_READ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "division",  # mlock(2) touches the pages itself
    [pytest.param("locked", marks=needs_kernel_faults), "without dump", "read-only"],
)
def test_a_page_that_lies_in_several_mappings_comes_and_goes(division: str) -> None:
    """The program did something to some machine pages of it."""

    def work() -> None:
        with opened(page_size=16 * SIZE, pages=64, budget=8) as region:
            data = noisy(20 * 16)
            array = filled(region, data)
            empty = region.array(10 * 16 * SIZE)
            for page in (0, 3, 6, 7, 15):
                DIVISIONS[division](part_of(array, page * 16 + 1, 2))
                DIVISIONS[division](part_of(empty, page % 10 * 16 + 1, 2))
            for _ in range(3):
                assert (array == data).all()
                assert not empty.any()
                region.evict_all()
                array[:: 16 * SIZE] += 1
                data[:: 16 * SIZE] += 1
                assert (array[::-1] == data[::-1]).all()
            before = region.figures["faults_minor"]
            for page in range(20):
                region.pager.pin(page, 1)
                part = part_of(array, page * 16, 16)
                to_kernel(
                    LIBC.madvise, part, MADV_DONTNEED_LOCKED
                )  # its memory is there, and not mapped
                assert (part == part_of(data, page * 16, 16)).all()
                region.pager.unpin(page, 1)
            assert region.figures["faults_minor"] >= before + 20
            region.evict_all()
            flip(region.group, 3)
            part_of(array, 3 * 16 + 1).sum()

    assert_sigbus(end_of(work), 3)


@pytest.mark.parametrize("page_size", [SIZE, 4 * SIZE])
def test_memory_that_the_program_removes_is_zeros(page_size: int) -> None:
    """MADV_REMOVE takes it out of the file, too."""

    def work() -> None:
        with opened(page_size=page_size) as region:
            data = noisy(24)
            array = filled(region, data)
            for page in (3, 4, 7):
                to_kernel(LIBC.madvise, part_of(array, page), MADV_REMOVE)
                part_of(data, page)[:] = 0
            assert (array == data).all()
            array += 1
            data += 1
            region.evict_all()
            assert (array == data).all()

    assert end_of(work).signal == 0


# What the kernel refuses.

COPY, ZEROPAGE, CONTINUE, POISON = 0xC028AA03, 0xC020AA04, 0xC020AA07, 0xC020AA08
"""Calls of userfaultfd."""


@needs_filters
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN])
def test_a_lost_page_that_cannot_be_marked_is_a_sigsegv_that_is_told(code: int) -> None:
    def work() -> None:
        with opened() as region:
            array = filled(region, noisy(100))
            region.evict_all()
            flip(region.group, 40)
            refuse("ioctl", POISON, code)
            part_of(array, 40).sum()

    end = end_of(work)
    assert end.signal == signal.SIGSEGV, end
    assert len(end.lines) == 2, end
    assert "page 40 " in end.lines[1], end
    assert f": {os.strerror(code)}. A touch raises SIGSEGV." in end.lines[1], end


@pytest.mark.slow
@needs_filters
@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize(
    ("what", "call"), [("stored", COPY), ("empty", ZEROPAGE), ("unmapped", CONTINUE)]
)
def test_a_touch_that_cannot_be_served_now_waits(what: str, call: int, code: int) -> None:
    """Nothing is lost. It waits until the memory is closed, as others wait for memory."""

    def work() -> None:
        with opened() as region:
            other = filled(region, noisy(8))
            region.pager.pin(0, 8)
            array = filled(region, noisy(8, 2))
            if what == "stored":
                region.evict(array)
            elif what == "unmapped":
                to_kernel(LIBC.madvise, part_of(array, 3), mmap.MADV_DONTNEED)
            else:
                array = region.array(8 * SIZE)
            refuse("ioctl", call, code)
            where = ctypes.c_void_p(part_of(array, 3).ctypes.data)
            threading.Thread(target=LIBC.memset, args=(where, 0, 1), daemon=True).start()
            faults = "faults_minor" if what == "unmapped" else "faults_missing"
            before = region.figures[faults]
            await_true(lambda: region.figures[faults] > before + 2, "another try")
            assert (other == noisy(8)).all()
            assert region.figures["lost_pages"] == 0
            region.pager.close()
            time.sleep(600)

    end = end_of(work)
    assert end.signal == signal.SIGBUS, end
    assert not end.lines, end


@needs_filters
@needs_kernel_faults
def test_a_page_whose_memory_is_damaged_is_a_sigbus() -> None:
    """The kernel does not map it again."""

    def work() -> None:
        with opened() as region:
            array = filled(region, noisy(8))
            region.evict_all()
            array += 1  # what is stored is older
            to_kernel(LIBC.madvise, part_of(array, 3), mmap.MADV_DONTNEED)
            refuse("ioctl", CONTINUE, errno.EIO)
            with contextlib.suppress(OSError):
                os.pwrite(os.memfd_create("any"), part_of(array, 3).data, 0)
            assert region.figures["resident_pages"] == 7
            region.evict_all()
            with pytest.raises(Exception, match="page 3"):
                region.pager.pin(3, 1)
            region.pager.pin(0, 3)
            region.pager.unpin(0, 3)
            part_of(array, 3).sum()

    end = end_of(work)
    assert end.signal == signal.SIGBUS, end
    assert "page 3 " in end.lines[0], end
    assert os.strerror(errno.EIO) in end.lines[0], end


@needs_filters
def test_pages_that_the_kernel_does_not_unmap_stay_beyond_the_budget() -> None:
    """Before Linux 5.18 these are pages that the program has locked."""

    def work() -> None:
        with opened(budget=16) as region:
            array = filled(region, noisy(20))
            for advice in (mmap.MADV_DONTNEED, 24):  # MADV_DONTNEED_LOCKED
                refuse("madvise", advice, errno.EINVAL, argument=2)
            more = filled(region, noisy(100, 2))
            assert region.figures["over_budget"] > 0
            assert (array == noisy(20)).all()
            assert (more == noisy(100, 2)).all()

    assert end_of(work).signal == 0
