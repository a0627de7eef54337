"""Paged memory whose pool, group or file is full: the budget is exceeded, and no byte is wrong."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.forked import in_forked_child
from support.paged_region import (
    HANG_LIMIT_S,
    content,
    filled,
    mixed,
    needs_paging,
    noisy,
    opened,
)
from support.waiting import await_true

from batchzip.core.region import Event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = needs_paging


SIZE = 4096


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
