"""A budget is exceeded only if nothing can leave memory, whatever happens meanwhile."""

from __future__ import annotations

import ctypes
import threading
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.paged_region import HANG_LIMIT_S, Region, content, filled, needs_paging, noisy, opened
from support.waiting import await_true

from batchzip.core.region import AccessAdvice

if TYPE_CHECKING:
    import numpy.typing as npt

pytestmark = needs_paging

LIBC = ctypes.CDLL(None)
SIZE = 65536
"""Bytes of a page that takes milliseconds to compress."""


def has_moved(region: Region, candidates: int) -> bool:
    return bool(region.figures["candidate_pages"] != candidates)


def touch(array: npt.NDArray[np.uint8], page: int) -> threading.Thread:
    """Write a byte of a page, in a thread that has no GIL meanwhile."""
    address = ctypes.c_void_p(array[page * SIZE :].ctypes.data)
    thread = threading.Thread(target=LIBC.memset, args=(address, 7, 1))
    thread.start()
    return thread


@pytest.mark.slow
def test_a_victim_that_is_touched_makes_way_for_the_next_one() -> None:
    """A page that is touched while it is compressed stays, and another page makes room."""
    with opened("zstd", parameters={"level": 19}, page_size=SIZE, budget=32, pages=200) as region:
        array = region.array(200 * SIZE)
        region.pager.advise(0, 200, AccessAdvice.RANDOM)
        # Every second page, so that a run has one page. The first ones are zeros and leave at once,
        # until there are more candidates than lie between the hands of the clock.
        text = content("text", 1, SIZE)
        for page in range(0, 100, 2):
            array[page * SIZE : (page + 1) * SIZE] = 0 if page < 36 else text
        spared = 0
        for page in range(100, 200, 2):
            before = region.figures
            if before["candidate_pages"] <= 32 // 8:  # the front hand moves, too
                array[page * SIZE] = 7
                continue
            victim = 2 * (before["dropped_empty_pages"] + before["evicted_pages"] + spared)
            thread = touch(array, page)
            await_true(
                partial(has_moved, region, before["candidate_pages"]),
                "the victim to be taken",
            )
            array[victim * SIZE] = 9
            thread.join(HANG_LIMIT_S)
            after = region.figures
            spared += after["second_chances"] - before["second_chances"]
            assert after["over_budget"] == 0
            assert after["resident_pages"] <= region.pager.budget
            if spared == 3:
                break
        assert spared


def test_pages_that_a_full_pool_refuses_make_way_for_clean_ones() -> None:
    with opened(pages=256, budget=32) as region:
        if not region.pager.tracks_writes:
            pytest.skip("this kernel does not tell which pages were written to")
        data = noisy(200)
        array = filled(region, data)
        region.evict_all()
        evicted = region.figures["evicted_pages"]
        region.store.max_pool_bytes = 1
        array[: 12 * 4096] = data[: 12 * 4096] = content("noise", 1, 12 * 4096)
        for _ in range(5):
            np.testing.assert_array_equal(array[12 * 4096 :], data[12 * 4096 :])
        figures = region.figures
        assert figures["evicted_pages"] <= evicted + 12
        assert figures["over_budget"] <= 1  # a fault that met refused pages eight times in a row
        np.testing.assert_array_equal(array, data)
