"""Paged memory whose pool is full, whose file fails, whose memory is out, whose objects are damaged: no byte is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.entries import flip, in_file, in_pool
from support.forked import in_forked_child
from support.paged_model import run_model
from support.paged_region import (
    HANG_LIMIT_S,
    Region,
    assert_sigbus,
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

from batchzip import BatchzipError, CorruptPage, Engine, LimitReached, PageError, SwapStore
from batchzip.core.memory import allocations, fail_allocation
from batchzip.core.pager import Pager
from batchzip.core.region import AccessAdvice, Event
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

pytestmark = needs_paging

SIZE = 4096
STATM = Path("/proc/self/statm")
OUT_OF_MEMORY = (MemoryError, OSError, BatchzipError)
"""What a call may raise where the core gets no memory."""


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    yield
    fail_allocation(0)


@pytest.fixture
def region() -> Iterator[Region]:
    with opened() as region:
        yield region


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


# Memory of the core.


def test_making_a_region_leaves_nothing_where_memory_is_out() -> None:
    with opened():
        pass
    before = tasks(), mappings()
    for number in range(1, 200):
        asked = allocations()
        fail_allocation(number)
        reached = True
        with LeakCheck():
            try:
                with opened(pages=64, budget=8):
                    reached = allocations() - asked >= number
            except OUT_OF_MEMORY:
                pass
            finally:
                fail_allocation(0)
        if not reached:
            break
    assert 5 < number < 199
    await_true(lambda: tasks() <= before[0], "the end of its threads")
    assert mappings() == before[1]


def _pin_and_unpin(region: Region, array: npt.NDArray[np.uint8]) -> None:
    pages = region.pages_of(array[: 8 * SIZE])
    region.pager.pin(*pages)
    region.pager.unpin(*pages)


CALLS: dict[str, Callable[[Region, npt.NDArray[np.uint8]], object]] = {
    "read": lambda _region, array: array[::SIZE].sum(),
    "write": lambda _region, array: np.add(array, 0, out=array),
    "allocate": lambda region, _array: region.array(20 * SIZE),
    "evict": Region.evict,
    "prefetch": lambda region, array: region.pager.prefetch(*region.pages_of(array)),
    "pin": _pin_and_unpin,
    "budget": lambda region, _array: setattr(region.pager, "budget", 4),
    "advise": lambda region, array: region.pager.advise(
        *region.pages_of(array), AccessAdvice.SEQUENTIAL
    ),
}


@pytest.mark.parametrize("count", [1, 1000], ids=["one", "all that follow"])
@pytest.mark.parametrize("call", CALLS)
def test_memory_that_is_out_loses_no_page(call: str, count: int, capfd: Any) -> None:
    data = mixed(60)
    number = 0
    while True:
        number += 1 + number // (20 if count == 1 else 1)
        with opened(pages=96, budget=16) as region:
            array = filled(region, data)
            asked = allocations()
            fail_allocation(number, count)
            with contextlib.suppress(*OUT_OF_MEMORY):
                CALLS[call](region, array)
            reached = allocations() - asked >= number
            if count == 1 or number > 100:
                fail_allocation(0)
            else:  # a touch waits until there is memory again
                threading.Timer(0.02, fail_allocation, [0]).start()
            np.testing.assert_array_equal(array, data)
            array[:] = data[::-1]
            np.testing.assert_array_equal(array, data[::-1])
            fail_allocation(0)
            region.await_budget()
            assert region.figures["lost_pages"] == 0
        if not reached or number > 400:
            break
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(120), pytest.param(3000, marks=pytest.mark.stress, id="stress")]
)
def test_memory_that_is_out_at_random_loses_no_page(steps: int, tmp_path: Path) -> None:
    with opened(pages=240, budget=20, backing=tmp_path, max_pool_bytes=200 << 10) as region:
        over = threading.Event()

        def fail() -> None:
            rng = random.Random(steps)
            while not over.wait(0.0005):
                fail_allocation(rng.randrange(1, 30), rng.choice([1, 1, 3, 20]))
            fail_allocation(0)

        def work(worker: Any) -> None:
            try:
                worker.run(steps)
            finally:
                finished.append(worker)
                if len(finished) == 3:
                    over.set()

        finished: list[Any] = []
        run_model(region, work, seed=steps, may_fail=OUT_OF_MEMORY, beside=fail)
        assert region.figures["lost_pages"] == 0


# A pool without room.


def test_a_full_pool_without_a_file_exceeds_the_budget_and_says_so() -> None:
    with opened(max_pool_bytes=64 << 10) as region:
        data = content("noise", 1, 200 * SIZE)
        array = filled(region, data)
        figures = region.figures
        assert figures["over_budget"] > 0
        assert figures["resident_pages"] > region.pager.budget
        assert (
            region.pager.await_event(0.0) & (Event.NO_ROOM | Event.OVER_BUDGET)
            == Event.NO_ROOM | Event.OVER_BUDGET
        )
        np.testing.assert_array_equal(array, data)
        array[:] = data[::-1]
        np.testing.assert_array_equal(array, data[::-1])
        assert region.figures["lost_pages"] == 0

        region.store.max_pool_bytes = None
        region.pager.room_was_made()
        region.await_budget()
        np.testing.assert_array_equal(array, data[::-1])


def test_in_a_full_pool_zeros_and_clean_pages_still_leave() -> None:
    with opened(pages=256, budget=32) as region:
        if not region.pager.tracks_writes:
            pytest.skip("this kernel does not tell which pages were written to")
        data = noisy(100)
        array = filled(region, data)
        other = region.array(100 * SIZE)
        region.evict_all()
        region.store.max_pool_bytes = 1
        for _ in range(3):
            np.testing.assert_array_equal(array, data)
            other[:] = 0
        assert region.figures["over_budget"] == 0
        region.await_budget()


def test_a_prefetch_that_finds_no_room_for_a_moment_is_not_given_up() -> None:
    with opened(budget=32) as region:
        cold = filled(region, noisy(8))
        region.evict_all()
        region.store.max_pool_bytes = 1
        hot = filled(region, noisy(32, 2))
        region.pager.prefetch(*region.pages_of(cold))
        for _ in range(3):
            assert region.pager.await_event(HANG_LIMIT_S) & Event.NO_ROOM
        assert region.figures["prefetched_pages"] < 8
        region.store.max_pool_bytes = None
        region.pager.room_was_made()
        await_true(lambda: region.figures["prefetched_pages"] == 8, "what was asked for")
        np.testing.assert_array_equal(cold, noisy(8))
        np.testing.assert_array_equal(hot, noisy(32, 2))


def test_a_full_group_exceeds_the_budget() -> None:
    with opened(pages=256, budget=16) as region:
        region.group.max_bytes = 100 << 10
        data = noisy(200)
        array = filled(region, data)
        np.testing.assert_array_equal(array, data)
        region.group.max_bytes = None
        region.pager.room_was_made()
        region.await_budget()
        np.testing.assert_array_equal(array, data)


def test_entries_that_went_to_the_file_come_back(tmp_path: Path) -> None:
    with opened(budget=16, backing=tmp_path, max_pool_bytes=64 << 10) as region:
        data = mixed(240)
        array = filled(region, data)
        np.testing.assert_array_equal(array[::-1], data[::-1])
        array[:] = data[::-1]
        region.evict_all()
        region.group.writeback(20)
        np.testing.assert_array_equal(array, data[::-1])
        assert region.figures["file_reads"] > 0
        assert region.store.counters.written_back_pages > 0
        assert region.figures["lost_pages"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_all_pages_in_the_file(algorithm: str, tmp_path: Path) -> None:
    with opened(algorithm, backing=tmp_path) as region:
        data = mixed(240)
        array = filled(region, data)
        region.evict_all()
        region.group.writeback(240)
        assert region.store.compressed_bytes == 0
        np.testing.assert_array_equal(array, data)
        rng = np.random.default_rng(1)
        for _ in range(20):
            chosen = rng.integers(0, len(data), 30)
            array[chosen] += 1
            data[chosen] = array[chosen]
            region.group.writeback(50)
            np.testing.assert_array_equal(array, data)


def test_a_full_file_exceeds_the_budget_and_loses_nothing(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"max_pool_bytes": 64 << 10, "max_backing_bytes": 256 << 10}
    with opened(budget=16, backing=tmp_path, **limits) as region:
        data = content("noise", 1, 240 * SIZE)
        array = filled(region, data)
        assert region.figures["over_budget"] > 0
        watcher = region.watcher
        assert watcher is not None
        await_true(lambda: watcher.events & Event.OVER_BUDGET, "word of it")
        np.testing.assert_array_equal(array, data)
        array[::2] = data[::2] = 5
        np.testing.assert_array_equal(array, data)
        region.store.max_backing_bytes = None
        region.pager.room_was_made()
        region.await_budget()
        np.testing.assert_array_equal(array, data)


def test_a_file_that_may_not_grow_exceeds_the_budget_and_loses_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with opened(budget=16, backing=tmp_path, max_pool_bytes=256 << 10) as region:
            data = content("noise", 1, 240 * SIZE)
            array = filled(region, data[: 60 * SIZE].repeat(4))
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, before[1]))
            array[:] = data
            np.testing.assert_array_equal(array, data)
            assert region.figures["lost_pages"] == 0
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            region.pager.room_was_made()
            region.await_budget()
            np.testing.assert_array_equal(array, data)

    in_forked_child(work)


def test_a_full_file_system_exceeds_the_budget_and_loses_nothing(small_disk: Path) -> None:
    with opened(budget=16, backing=small_disk, max_pool_bytes=64 << 10) as region:
        data = content("noise", 1, 240 * SIZE)
        array = filled(region, data)
        assert region.figures["over_budget"] > 0
        np.testing.assert_array_equal(array, data)
        array[:] = data[::-1]
        np.testing.assert_array_equal(array, data[::-1])
        assert region.figures["lost_pages"] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 512 KiB, in a name space of its own where that can be."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(where)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


# Damage. `damaged` does its work in a child, which dies of a touch.


def damage_in_pool(region: Region, page: int) -> None:
    flip(region.group, page)


def damage_in_file(region: Region, page: int) -> None:
    assert region.group.writeback([page]) == 1
    offset = in_file(region.group, page)[7]
    descriptor = region.store._resources.backing.descriptor  # type: ignore[union-attr]
    byte = os.pread(descriptor, 1, offset)[0]  # type: ignore[arg-type]
    os.pwrite(descriptor, bytes([byte ^ 16]), offset)  # type: ignore[arg-type]


def cut_the_file(region: Region, page: int) -> None:
    assert region.group.writeback([page]) == 1
    os.truncate(region.store._resources.backing.descriptor, in_file(region.group, page)[0] + 3)  # type: ignore[union-attr,arg-type]


def blank(region: Region, page: int) -> None:
    stored = in_pool(region.group, page)
    stored[:] = bytes(len(stored))


def take_out(region: Region, page: int) -> None:
    assert region.group.invalidate(page) == 1


def exchange(region: Region, page: int) -> None:
    """Store the page that is at another index: what it says of itself is right, but it is not this page."""
    in_pool(region.group, page)[:32] = in_pool(region.group, page + 1)[:32]


def close_the_store(region: Region, page: int) -> None:  # noqa: ARG001 - as the others
    region.store.close()


def close_the_group(region: Region, page: int) -> None:  # noqa: ARG001 - as the others
    region.store.drop_group("region")


DAMAGES = (
    damage_in_pool,
    damage_in_file,
    cut_the_file,
    blank,
    take_out,
    exchange,
    close_the_store,
    close_the_group,
)
MENDABLE = (damage_in_pool,)


def dies_of(
    touch: Callable[[Region, npt.NDArray[np.uint8], int], object],
    damage: Callable[[Region, int], None],
    *,
    prepare: Callable[[Region, npt.NDArray[np.uint8]], object] = lambda _region, _array: None,
) -> tuple[Any, int]:
    """Touch a page that was damaged, in a child. Return how it ended, and the page."""

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, opened(backing=folder) as region:
            array = filled(region, noisy(100))
            prepare(region, array)
            region.evict_all()
            first, _ = region.pages_of(array)
            assert first == 0
            damage(region, 40)
            touch(region, array, 40 * SIZE)
            os.write(2, b"and goes on\n")

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", None)
        end = end_of(work)
    return end, 40


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_touch_of_a_page_that_cannot_be_restored_is_a_sigbus_that_is_explained(
    damage: Callable[[Region, int], None],
) -> None:
    end, page = dies_of(lambda _region, array, at: array[at], damage)
    assert_sigbus(end, page)


@pytest.mark.parametrize(
    "touch",
    [
        lambda _region, array, at: array.__setitem__(at + 9, 1),
        lambda _region, array, at: array.__setitem__(slice(at - 3 * SIZE, at + 3 * SIZE), 1),
        lambda _region, array, _at: array.sum(),
        lambda _region, array, _at: array.tobytes(),
        lambda _region, array, _at: array[::-1].copy(),
        lambda _region, array, at: array[[at, at + 1]],
        lambda _region, array, at: bytes(memoryview(array)[at : at + 10]),
        lambda _region, array, at: _in_thread(lambda: array[at]),
    ],
    ids=["write", "fill", "sum", "tobytes", "backwards", "choose", "bytes", "in a thread"],
)
def test_however_it_is_touched(touch: Callable[..., object]) -> None:
    end, page = dies_of(touch, damage_in_pool)
    assert_sigbus(end, page)


def _in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_page_that_was_clean_is_a_sigbus_too() -> None:
    """Where the kernel keeps a mark that the page was write-protected."""
    end, page = dies_of(
        lambda _region, array, at: array[at],
        damage_in_pool,
        prepare=lambda region, array: (region.evict_all(), array.sum()),
    )
    assert_sigbus(end, page)


@pytest.mark.parametrize("advice", list(AccessAdvice))
def test_a_touch_of_its_neighbours_is_none_of_it(advice: AccessAdvice) -> None:
    def touch(region: Region, array: npt.NDArray[np.uint8], at: int) -> None:
        region.pager.advise(*region.pages_of(array), advice)
        data = noisy(100)
        for page in (30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 41, 42, 43, 45, 60, 59):
            assert bytes(array[page * SIZE : (page + 1) * SIZE]) == bytes(
                data[page * SIZE : (page + 1) * SIZE]
            )

        def prefetched() -> int:
            region.pager.prefetch(30, 25)  # again: it passes a page that readahead is just trying
            return region.pager.figures()["prefetched_pages"]

        await_true(prefetched, "pages")
        region.evict_all()
        assert array[39 * SIZE] == data[39 * SIZE]
        array[at]

    end, page = dies_of(touch, damage_in_pool)
    assert_sigbus(end, page)


def test_a_touch_of_memory_of_no_array_is_a_sigbus() -> None:
    def work() -> None:
        with opened() as region:
            array = region.array(10 * SIZE)
            beyond = np.lib.stride_tricks.as_strided(array, (20 * SIZE,))
            beyond[12 * SIZE]

    end = end_of(work)
    assert_sigbus(end, 12)


@pytest.mark.parametrize("damage", DAMAGES)
def test_pinning_a_page_that_cannot_be_restored_is_an_error(
    damage: Callable[[Region, int], None], tmp_path: Path
) -> None:
    with opened(backing=tmp_path) as region:
        data = noisy(100)
        array = filled(region, data)
        region.evict_all()
        damage(region, 40)
        with pytest.raises((CorruptPage, PageError)) as raised:
            region.pager.pin(30, 20)
        if isinstance(raised.value, CorruptPage):
            assert raised.value.index == 40
        assert region.figures["pinned_pages"] == 0
        if damage in (close_the_store, close_the_group):
            return
        for first, last in ((0, 40), (41, 100)):
            span = slice(first * SIZE, last * SIZE)
            np.testing.assert_array_equal(array[span], data[span])
        region.pager.pin(41, 5)
        region.pager.unpin(41, 5)
        region.pager.close()  # what was taken out is not where it should be


def test_what_pinning_found_damaged_and_was_put_right_is_there(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)
    region.evict_all()
    flip(region.group, 40)
    for _ in range(2):
        with pytest.raises(CorruptPage):
            region.pager.pin(40, 1)
    flip(region.group, 40)
    region.pager.pin(40, 1)
    np.testing.assert_array_equal(array, data)
    region.pager.unpin(40, 1)


def test_check_finds_damage_before_a_touch_does(region: Region) -> None:
    array = filled(region, noisy(100))
    region.evict_all()
    assert region.store.check().ok
    flip(region.group, 40)
    flip(region.group, 77)
    assert region.store.check().damaged == (("region", 40), ("region", 77))
    flip(region.group, 40)
    flip(region.group, 77)
    np.testing.assert_array_equal(array, noisy(100))


def test_a_guarded_touch_of_a_lost_page_is_an_error_and_all_else_goes_on(
    region: Region, capfd: Any
) -> None:
    """A system call that reads a lost page is not ended by a signal."""
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    data = noisy(100)
    array = filled(region, data)
    region.evict_all()
    flip(region.group, 40)
    reading, writing = os.pipe()
    for _ in range(3):
        with pytest.raises(OSError, match="Bad address"):
            os.write(writing, array[40 * SIZE : 41 * SIZE].data)
    os.close(reading)
    os.close(writing)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "page 40 " in said
    assert region.pager.await_event(HANG_LIMIT_S) & Event.PAGE_LOST
    assert region.figures["lost_pages"] == 1
    with pytest.raises((CorruptPage, PageError)):
        region.pager.pin(40, 1)
    for first, last in ((0, 40), (41, 100)):
        span = slice(first * SIZE, last * SIZE)
        np.testing.assert_array_equal(array[span], data[span])
    region.evict_all()

    # Its memory is good again for whoever gets it next.
    del array, span
    again = region.array(256 * SIZE)
    assert not again.any()
    again[:] = 3
    region.evict_all()
    assert (again == 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["pool", "file"])
def test_no_damaged_bit_ever_gives_wrong_bytes(where: str, tmp_path: Path) -> None:
    rng = random.Random(5)
    with opened("zstd", backing=tmp_path) as region:
        data = mixed(60)
        array = filled(region, data)
        for _ in range(300):
            region.evict_all()
            page = rng.choice([page for page in range(60) if page % 4 > 1])
            if where == "pool":
                stored = in_pool(region.group, page)
                at, bit = rng.randrange(len(stored)), 1 << rng.randrange(8)
                stored[at] ^= bit
            else:
                region.group.writeback([page])
                descriptor: int = region.store._resources.backing.descriptor  # type: ignore[union-attr,assignment]
                offset, bit = rng.choice(in_file(region.group, page)), 1 << rng.randrange(8)
                byte = os.pread(descriptor, 1, offset)[0]
                os.pwrite(descriptor, bytes([byte ^ bit]), offset)
            with pytest.raises(CorruptPage):
                region.pager.pin(page, 1)
            if where == "pool":
                stored[at] ^= bit
            else:
                os.pwrite(descriptor, bytes([byte]), offset)
            region.pager.pin(page, 1)
            region.pager.unpin(page, 1)
        np.testing.assert_array_equal(array, data)


# A file that somebody else closes, or replaces.


@pytest.mark.parametrize("replaced", [False, True])
def test_a_descriptor_that_is_another_file_by_now_gives_no_wrong_bytes(
    replaced: bool, tmp_path: Path
) -> None:
    def work() -> None:
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        with contextlib.suppress(OSError), opened(backing=fd) as region:
            array = filled(region, noisy(100))
            region.evict_all()
            region.group.writeback(100)
            descriptor = region.store._resources.backing.descriptor  # type: ignore[union-attr]
            if replaced:
                other = os.open(os.devnull, os.O_RDWR)
                os.dup2(other, descriptor)  # type: ignore[arg-type]
            else:
                os.close(descriptor)  # type: ignore[arg-type]
            array[40 * SIZE]

    assert_sigbus(end_of(work), 40)


# Limits of the system.


@pytest.mark.parametrize(
    ("which", "value"),
    [
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_AS, 64 << 20),
        (resource.RLIMIT_FSIZE, 1 << 20),
    ],
    ids=["descriptors", "addresses", "bytes of a file"],
)
def test_a_limit_of_the_system_is_named_and_nothing_is_left(which: int, value: int) -> None:
    def work() -> None:
        # The store comes first; what is short is what the region asks for.
        with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
            entries = store.group("region")._entries
            number = store._resources.writer.number
            held = descriptors()
            before = resource.getrlimit(which)
            limit = value
            if which == resource.RLIMIT_NOFILE:
                limit = max(map(int, held)) + 1
                while os.dup(0) < limit - 1:
                    pass
                held = descriptors()
            elif which == resource.RLIMIT_AS:
                limit += int(STATM.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(which, (limit, before[1]))
            try:
                with pytest.raises(LimitReached):
                    Pager(entries, number, pages=1 << 16, budget=64)
            finally:
                resource.setrlimit(which, before)
            assert descriptors() == held
            assert len(tasks()) == 1
            pager = Pager(entries, number, pages=1 << 16, budget=64)
            pager.close()

    in_forked_child(work)


def test_threads_that_cannot_be_started_are_named_and_nothing_is_left() -> None:
    def work() -> None:
        os.setresuid(54_321, 54_321, 54_321)
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))
        with pytest.raises(LimitReached, match="RLIMIT_NPROC"), opened():
            pass
        assert len(tasks()) == 1

    if os.geteuid():
        pytest.skip("only root can become another user")
    in_forked_child(work)
