"""Paged memory where memory, descriptors or threads are out: no page is lost."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.paged_model import run_model
from support.paged_region import Region, filled, mappings, mixed, needs_paging, opened
from support.waiting import await_true, tasks

from batchzip import BatchzipError, Engine, LimitReached, SwapStore
from batchzip.core.memory import allocations, fail_allocation
from batchzip.core.pager import Pager
from batchzip.core.region import AccessAdvice
from batchzip.testing import LeakCheck

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


pytestmark = needs_paging


SIZE = 4096

STATM = Path("/proc/self/statm")

OUT_OF_MEMORY = (MemoryError, OSError, BatchzipError)
"""What a call may raise where the core gets no memory."""


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


# Memory of the core.


@pytest.mark.slow
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


@pytest.mark.slow
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


# Limits of the system.


@pytest.mark.slow
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


@pytest.mark.slow
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
