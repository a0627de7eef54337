"""Which pages stay, leave and come back: clean, pinned, prefetched and advised ones."""

from __future__ import annotations

import numpy as np
import pytest
from support.codecs.slow import SlowCodec
from support.paged_region import Region, content, filled, needs_paging, noisy, opened
from support.waiting import await_true, tasks

from batchzip import BadArgument, BatchzipError, Engine, SwapStore
from batchzip.core.pager import Pager
from batchzip.core.region import AccessAdvice
from batchzip.core.userfaultfd import CLEAN_PAGES, WAYS, probe

pytestmark = needs_paging


SIZE = 4096


# Where pages are.


def test_pages_that_were_only_read_are_not_compressed_again(region: Region) -> None:
    if not region.pager.tracks_writes:
        pytest.skip("this kernel does not tell which pages were written to")
    data = noisy(30)
    array = filled(region, data)
    region.evict_all()
    before = region.figures
    np.testing.assert_array_equal(array, data)
    assert region.evict_all() == 30
    after = region.figures
    assert after["evicted_pages"] == before["evicted_pages"]
    assert after["dropped_clean_pages"] - before["dropped_clean_pages"] == 30
    np.testing.assert_array_equal(array, data)


def test_a_clean_page_that_is_written_to_is_not_taken_for_clean(region: Region) -> None:
    data = noisy(30)
    array = filled(region, data)
    for turn in range(8):
        region.evict_all()
        np.testing.assert_array_equal(array, data)  # by reading: protected
        chosen = slice(turn % 3 * SIZE + 9, None, 3 * SIZE)
        array[chosen] += 1
        data[chosen] += 1
    region.evict_all()
    np.testing.assert_array_equal(array, data)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_every_machine_page_of_a_clean_page_tells_of_a_write(page_size: int) -> None:
    with opened(page_size=page_size, pages=40, budget=20) as region:
        data = content("text", 1, 16 * page_size)
        array = filled(region, data)
        for at in range(0, page_size, 4096):
            region.evict_all()
            np.testing.assert_array_equal(array, data)
            array[at + 17 :: page_size] ^= 1
            data[at + 17 :: page_size] ^= 1
        region.evict_all()
        np.testing.assert_array_equal(array, data)


def test_the_kernels_tracking_of_writes_is_used_where_it_has_it(region: Region) -> None:
    way, features, _ = probe()
    assert region.pager.way == way
    assert region.pager.way in WAYS
    assert region.pager.tracks_writes == (features & CLEAN_PAGES == CLEAN_PAGES)


def test_pages_about_to_be_evicted_get_a_second_chance() -> None:
    with opened(pages=1400, budget=1024) as region:
        data = noisy(1280)
        array = filled(region, data)
        for _ in range(100):  # until some are between the hands when everything rests
            region.pager.budget = 1400  # nothing more is unmapped from now on
            region.pager.check_invariants()  # waits for what is under way
            before = region.figures
            if before["candidate_pages"]:
                break
            region.pager.budget = 1024
            np.testing.assert_array_equal(array, data)
        assert before["candidate_pages"]
        np.testing.assert_array_equal(array, data)
        after = region.figures
        grown = {name: after[name] - before[name] for name in after}
        # A step of the clock that had begun before the budget grew may still evict its run.
        left = sum(grown[f"{how}_pages"] for how in ("evicted", "dropped_clean", "dropped_empty"))
        assert grown["second_chances"] + left >= before["candidate_pages"]
        assert grown["restored_pages"] <= before["stored_pages"] + left
        assert after["second_chances"] > 0
        assert after["faults_minor"] > 0


def test_pages_in_use_stay_though_all_others_go_through_memory() -> None:
    with opened(pages=2048, budget=256) as region:
        array = region.array(2048 * SIZE)
        hot = array[: 80 * SIZE : SIZE]
        for start in range(80 * SIZE, len(array), 4 * SIZE):
            array[start : start + 4 * SIZE] = start // SIZE % 250 + 1
            hot += 1
        assert region.figures["evicted_pages"] > 1500
        assert region.figures["restored_pages"] < 320


def test_prefetched_pages_need_no_fault(region: Region) -> None:
    data = noisy(20)
    array = filled(region, data)
    region.evict_all()
    before = region.figures
    region.pager.prefetch(*region.pages_of(array))
    await_true(
        lambda: region.figures["prefetched_pages"] - before["prefetched_pages"] == 20, "pages"
    )
    np.testing.assert_array_equal(array, data)
    after = region.figures
    assert after["faults_missing"] == before["faults_missing"]
    assert after["resident_pages"] == 20


def test_prefetching_more_than_the_budget_keeps_it(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    region.pager.prefetch(*region.pages_of(array))
    np.testing.assert_array_equal(array, data)
    region.await_budget()


@pytest.mark.parametrize("stride", [1, 3, -1, -2])
def test_strides_are_read_ahead(stride: int) -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(1000)
        array = filled(region, data)
        region.evict_all()
        before = region.figures
        touched = array[::SIZE][::stride]
        np.testing.assert_array_equal(touched, data[::SIZE][::stride])
        after = region.figures
        ahead = after["readahead_pages"] - before["readahead_pages"]
        assert ahead > len(touched) // 8
        assert after["readahead_hits"] - before["readahead_hits"] > ahead // 4
        assert after["faults_missing"] - before["faults_missing"] < len(touched)


@pytest.mark.slow
def test_advised_random_pages_are_not_read_ahead() -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(1000)
        array = filled(region, data)
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.RANDOM)
        before = region.figures["readahead_pages"]
        np.testing.assert_array_equal(array, data)
        assert region.figures["readahead_pages"] == before
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.NORMAL)
        np.testing.assert_array_equal(array, data)
        assert region.figures["readahead_pages"] > before


def test_advised_sequential_pages_are_read_ahead_from_the_first_one_on() -> None:
    with opened(pages=1024, budget=128) as region:
        data = noisy(200)
        array = filled(region, data)
        region.evict_all()
        region.pager.advise(*region.pages_of(array), AccessAdvice.SEQUENTIAL)
        before = region.figures["readahead_pages"]
        assert array[0] == data[0]
        await_true(lambda: region.figures["readahead_pages"] > before, "pages behind the first")
        np.testing.assert_array_equal(array, data)


def test_pinned_pages_stay_and_others_go(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    first, _ = region.pages_of(array)
    region.pager.pin(first + 10, 12)
    assert region.figures["pinned_pages"] == 12
    region.evict_all()
    before = region.figures
    assert before["resident_pages"] == 12
    np.testing.assert_array_equal(array[10 * SIZE : 22 * SIZE], data[10 * SIZE : 22 * SIZE])
    assert region.figures["faults_missing"] == before["faults_missing"]
    np.testing.assert_array_equal(array, data)
    before = region.figures
    array[10 * SIZE : 22 * SIZE : SIZE] = 9
    assert region.figures["faults_missing"] == before["faults_missing"]
    assert region.figures["faults_minor"] == before["faults_minor"]
    region.pager.unpin(first + 10, 12)
    assert region.figures["pinned_pages"] == 0
    region.evict_all()
    assert region.figures["resident_pages"] == 0


def test_nested_pins_are_counted(region: Region) -> None:
    array = filled(region, noisy(10))
    pages = region.pages_of(array)
    region.pager.pin(*pages)
    region.pager.pin(pages[0] + 2, 3)
    region.pager.unpin(*pages)
    assert region.figures["pinned_pages"] == 3
    assert region.evict_all() == 7
    region.pager.unpin(pages[0] + 2, 3)
    assert region.evict_all() == 3


def test_more_than_the_budget_cannot_be_pinned(region: Region) -> None:
    data = noisy(100)
    array = filled(region, data)
    first, _ = region.pages_of(array)
    with pytest.raises(BadArgument, match="budget"):
        region.pager.pin(first, 33)
    assert region.figures["pinned_pages"] == 0
    region.pager.pin(first, 16)
    with pytest.raises(BadArgument, match="budget"):
        region.pager.pin(first + 50, 20)
    assert region.figures["pinned_pages"] == 16
    np.testing.assert_array_equal(array, data)
    region.pager.unpin(first, 16)


def test_a_smaller_budget_sends_pages_out_and_a_larger_one_keeps_them(region: Region) -> None:
    data = noisy(200)
    array = filled(region, data)
    for budget in (64, 5, 256, 2, 100):
        region.pager.budget = budget
        assert region.pager.budget == region.figures["budget_pages"] == budget
        region.await_budget()
        np.testing.assert_array_equal(array, data)
    region.pager.budget = 256
    np.testing.assert_array_equal(array, data)
    region.pager.check_invariants()  # waits until the last ones are counted
    before = region.figures["restored_pages"]
    np.testing.assert_array_equal(array, data)
    assert region.figures["restored_pages"] == before


@pytest.mark.parametrize("pages", [-256, 1 << 48, 1 << 60, 1 << 70])
def test_a_region_that_cannot_be_had_is_refused(pages: int) -> None:
    before = tasks()
    with pytest.raises((BatchzipError, MemoryError, OverflowError)), opened(pages=pages):
        pass
    await_true(lambda: tasks() <= before, "the end of its threads")


def test_a_codec_in_python_is_refused() -> None:
    with (
        Engine(SlowCodec(0.0), backend="sequential") as engine,
        SwapStore(engine) as store,
        pytest.raises(BadArgument, match="codec"),
    ):
        Pager(
            store.group("region")._entries,
            store._resources.writer.number,
            pages=64,
            budget=8,
        )
