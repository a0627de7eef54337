"""A touch of paged memory whose objects are damaged is a SIGBUS or an error, never a wrong byte."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.entries import flip, in_file, in_pool
from support.paged_region import (
    HANG_LIMIT_S,
    Region,
    assert_sigbus,
    end_of,
    filled,
    mixed,
    needs_paging,
    noisy,
    opened,
)
from support.waiting import await_true

from batchzip import CorruptPage, PageError
from batchzip.core.region import AccessAdvice, Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt


pytestmark = needs_paging


SIZE = 4096


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
    """Store a page of another index. Its checksum is right, but it is not this page."""
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


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_touch_of_a_page_that_cannot_be_restored_is_a_sigbus_that_is_explained(
    damage: Callable[[Region, int], None],
) -> None:
    end, page = dies_of(lambda _region, array, at: array[at], damage)
    assert_sigbus(end, page)


@pytest.mark.slow
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
def test_any_kind_of_touch_of_a_damaged_page_is_a_sigbus(touch: Callable[..., object]) -> None:
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
def test_neighbours_of_a_damaged_page_can_be_touched(advice: AccessAdvice) -> None:
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


@pytest.mark.slow
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


def test_pinning_succeeds_once_damage_is_repaired(region: Region) -> None:
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
