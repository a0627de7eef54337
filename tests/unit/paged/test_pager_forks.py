"""A forked child has no part of a region, and harms nobody."""

from __future__ import annotations

import gc
import signal
import threading
from functools import partial

import numpy as np
import pytest
from support.forked import in_forked_child
from support.paged_region import Region, end_of, filled, needs_paging, noisy, opened
from support.waiting import tasks

from batchzip import ForkedProcess
from batchzip.testing.plain import in_threads

pytestmark = needs_paging


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


@pytest.mark.slow
def test_a_touch_in_a_forked_child_ends_it_and_harms_nobody(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)
    for at in (0, -1):
        end = end_of(partial(array.item, at))
        assert end.signal in (signal.SIGSEGV, signal.SIGBUS), end
    np.testing.assert_array_equal(array, data)


@pytest.mark.slow
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
def test_forks_beside_faults_see_right_pages(region: Region) -> None:
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
