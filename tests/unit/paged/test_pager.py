"""Every byte read from paged memory is the last one written, whoever touches it."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import numpy as np
import pytest
from support.paged_model import run_model
from support.paged_region import (
    HANG_LIMIT_S,
    KINDS,
    Region,
    content,
    filled,
    mixed,
    needs_paging,
    noisy,
    opened,
)

from batchzip.testing.plain import in_threads

pytestmark = needs_paging


SIZE = 4096

PAGE_SIZES = [4096 << shift for shift in range(5)]


# Contents.


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_evicted_pages_of_any_content_come_back(kind: str, page_size: int) -> None:
    with opened(page_size=page_size, pages=24, budget=6) as region:
        data = content(kind, 3, 20 * page_size)
        array = filled(region, data)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        assert region.figures["resident_pages"] == 0
        np.testing.assert_array_equal(array[::-1], data[::-1])
        array[::page_size] = 7
        data[::page_size] = 7
        region.evict_all()
        np.testing.assert_array_equal(array, data)


@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [
        ("lz4", {}),
        ("lz4", {"shuffle": "f8"}),
        ("lz4hc", {}),
        ("zstd", {"level": 1}),
        ("zstd", {"level": 3, "shuffle": "f4"}),
    ],
    ids=str,
)
def test_evicted_pages_come_back_with_every_native_codec(
    algorithm: str, parameters: dict[str, Any]
) -> None:
    with opened(algorithm, parameters=parameters, pages=200, budget=20) as region:
        data = mixed(180)
        array = filled(region, data)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        np.testing.assert_array_equal(array[::-1], data[::-1])


def test_new_memory_is_zero_and_costs_nothing_until_it_is_written_to(region: Region) -> None:
    array = region.array(200 * SIZE)
    assert not array.any()
    assert region.figures["resident_pages"] <= region.pager.budget
    region.evict_all()
    assert region.figures["stored_pages"] == 0
    assert len(region.group) == 0


def test_pages_that_were_emptied_need_no_entry(region: Region) -> None:
    array = filled(region, noisy(100))
    region.evict_all()
    assert len(region.group) == 100
    array[: 60 * SIZE] = 0
    region.evict_all()
    assert len(region.group) == 40
    assert not array[: 60 * SIZE].any()


def test_same_filled_pages_take_no_memory_of_the_pool(region: Region) -> None:
    array = filled(region, content("same", 5, 200 * SIZE))
    region.evict_all()
    assert region.group.counters.same_filled_pages == 200
    assert region.store._resources.pool.objects == 0
    np.testing.assert_array_equal(array, content("same", 5, 200 * SIZE))


@pytest.mark.slow
def test_the_budget_is_kept_while_much_more_is_touched(region: Region) -> None:
    array = region.array(240 * SIZE, np.uint8)
    data = noisy(240)
    for start in range(0, len(data), 5 * SIZE):
        array[start : start + 5 * SIZE] = data[start : start + 5 * SIZE]
        assert region.figures["resident_pages"] <= region.pager.budget
    rng = np.random.default_rng(1)
    for _ in range(50):
        chosen = rng.integers(0, len(data), 200)
        np.testing.assert_array_equal(array[chosen], data[chosen])
        assert region.figures["resident_pages"] <= region.pager.budget
    assert region.figures["over_budget"] == 0
    assert region.figures["lost_pages"] == 0


def test_a_budget_of_two_pages_is_enough() -> None:
    with opened(budget=2, pages=64) as region:
        data = mixed(60)
        array = filled(region, data)
        np.testing.assert_array_equal(array[::-1], data[::-1])
        array[:] = array[::-1].copy()
        np.testing.assert_array_equal(array, data[::-1])
        region.await_budget()


def test_a_word_over_the_border_of_two_pages() -> None:
    with opened(budget=2, pages=64) as region:
        array = region.array(60 * SIZE)
        words = np.ndarray((59,), np.uint64, array, SIZE - 4, (SIZE,))
        words[:] = np.arange(59, dtype=np.uint64) * np.uint64(0x0123456789ABCDEF)
        region.evict_all()
        assert words.tolist() == [page * 0x0123456789ABCDEF % (1 << 64) for page in range(59)]


# System calls.


def test_system_calls_read_and_write_it(region: Region, tmp_path: Any) -> None:
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    data = noisy(200)
    path = tmp_path / "file"
    data.tofile(path)
    array = region.array(200 * SIZE)
    with path.open("rb", buffering=0) as file:
        assert file.readinto(array) == len(array)
        np.testing.assert_array_equal(array, data)
        region.evict_all()
        assert os.preadv(file.fileno(), [array.data], 0) == len(array)
    region.evict_all()
    with path.open("wb", buffering=0) as file:
        assert file.write(array) == len(array)
    assert path.read_bytes() == data.tobytes()


def test_sockets_send_and_receive_it(region: Region) -> None:
    if region.pager.way == "user mode":
        pytest.skip("here the kernel may not fault")
    data = noisy(100)
    one, two = filled(region, data), region.array(100 * SIZE)
    left, right = socket.socketpair()
    with left, right:
        sending = threading.Thread(target=left.sendall, args=(one,))
        sending.start()
        at = 0
        while at < len(two):
            at += right.recv_into(two[at:].data)
        sending.join(HANG_LIMIT_S)
    np.testing.assert_array_equal(two, data)


# Threads.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        pytest.param("lz4", {"pages": 240, "budget": 2}, id="two pages"),
        pytest.param("lz4", {"pages": 240, "budget": 24, "fault_threads": 1}, id="one thread"),
        pytest.param("zstd", {"pages": 240, "budget": 24, "fault_threads": 4}, id="four threads"),
        pytest.param("lz4", {"pages": 240, "budget": 240}, id="all pages"),
        pytest.param("lz4", {"pages": 96, "budget": 9, "page_size": 16384}, id="16 KiB"),
        pytest.param("lz4", {"pages": 60, "budget": 7, "page_size": 65536}, id="64 KiB"),
    ],
)
def test_threads_find_what_they_wrote_last(algorithm: str, options: dict[str, Any]) -> None:
    with opened(algorithm, **options) as region:
        run_model(region, lambda worker: worker.run(150), seed=options["budget"])
        assert region.figures["lost_pages"] == 0
        region.await_budget()


@pytest.mark.slow
def test_threads_find_what_they_wrote_last_with_a_backing_file(tmp_path: Any) -> None:
    with opened(pages=240, budget=20, backing=tmp_path, max_pool_bytes=160 << 10) as region:
        run_model(region, lambda worker: worker.run(150), seed=5)
        figures = region.figures
        assert figures["file_reads"] > 0
        assert figures["lost_pages"] == 0


@pytest.mark.slow
def test_threads_that_fault_on_the_same_pages_at_once() -> None:
    with opened(pages=64, budget=16) as region:
        data = noisy(60)
        array = filled(region, data)
        barrier = threading.Barrier(4)

        def work(number: int) -> None:
            for turn in range(60):
                if number == 0:
                    region.evict_all()
                barrier.wait(HANG_LIMIT_S)
                at = turn % 30 * SIZE
                np.testing.assert_array_equal(array[at : at + 20 * SIZE], data[at : at + 20 * SIZE])

        in_threads(4, work)


@pytest.mark.slow
def test_eviction_beside_writes_loses_none() -> None:
    """One thread writes to a page again and again while others unmap it."""
    with opened(pages=64, budget=16) as region:
        array = region.array(4 * SIZE, np.uint64)
        over = threading.Event()

        def write() -> None:
            try:
                for turn in range(1, 800):
                    array[:: SIZE // 8] = turn
                    assert (array[:: SIZE // 8] == turn).all()
            finally:
                over.set()

        def evict() -> None:
            while not over.is_set():
                region.evict_all()

        in_threads(2, lambda number: write() if number == 0 else evict())


@pytest.mark.slow
def test_arrays_come_and_go_in_threads() -> None:
    with opened(pages=600, budget=20) as region:

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            for turn in range(40):
                array = region.array(int(rng.integers(1, 50 * SIZE)))
                assert not array.any()
                array[:] = turn * 4 + number + 1
                region.evict_all()
                assert (array == turn * 4 + number + 1).all()
                del array

        in_threads(4, work)
        assert region.figures["stored_pages"] == region.figures["resident_pages"] == 0
        assert len(region.group) == 0
