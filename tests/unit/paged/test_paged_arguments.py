"""Arguments of PagedMemory are rounded, or refused with what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.paged_memory import BUDGET, PAGE, SIZE, evict, needs_faults, run
from support.waiting import await_true

import batchzip
from batchzip import (
    BadArgument,
    NotStorable,
    PagedMemory,
)
from batchzip.paged.ranges import range_of

# Arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": PAGE, "budget": PAGE}, "size must be an integer of at least 8192"),
        ({"size": 0}, "size"),
        ({"size": -5}, "size"),
        ({"size": 1e6}, "size"),
        ({"size": None}, "size"),
        ({"budget": PAGE}, "budget must be an integer in 8192…1048576"),
        ({"budget": SIZE + 1}, "budget must be an integer in 8192…1048576"),
        ({"budget": "1 GiB"}, "budget"),
        ({"size": 1 << 50, "budget": 1 << 49}, "bytes of memory that"),
        ({"page_size": 2048}, "page_size"),
        ({"page_size": 1 << 17}, "page_size"),
        ({"page_size": 5000}, "power of two"),
        ({"algorithm": "deflate"}, "use lz4, lz4hc or zstd"),
        ({"algorithm": "lz4", "level": 3}, "no parameter 'level'"),
        ({"backend": "threads"}, "no parameter 'backend'"),
        ({"fault_threads": 0}, "fault_threads"),
        ({"fault_threads": 65}, "fault_threads"),
        ({"max_backing_bytes": 5}, "backing="),
    ],
)
@needs_faults
def test_a_bad_argument_says_what_would_be_right(arguments: dict[str, Any], words: str) -> None:
    given = {"size": SIZE, "budget": BUDGET, **arguments}
    with pytest.raises(BadArgument, match=words):
        PagedMemory(**given)


@needs_faults
def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(batchzip.UnknownAlgorithm, match="'lz5'"):
        PagedMemory(SIZE, BUDGET, "lz5")


@needs_faults
def test_a_backing_file_without_a_descriptor_is_refused() -> None:
    class Storage:
        def pread(self, length: int, offset: int) -> bytes:
            return bytes(length + 0 * offset)

        def pwrite(self, data: memoryview, offset: int) -> int:
            return len(data) + 0 * offset

    with pytest.raises(BadArgument, match="descriptor"):
        PagedMemory(SIZE, BUDGET, backing=Storage())


@pytest.mark.slow
@needs_faults
def test_addresses_that_are_out_name_the_limit() -> None:
    script = """
import resource, batchzip
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    batchzip.PagedMemory(1 << 40, 1 << 20)
except batchzip.LimitReached as error:
    assert "ulimit -v" in str(error), error
    print("refused")
with batchzip.PagedMemory(1 << 20, 1 << 19) as memory:
    assert not memory.array(1000).any()
"""
    done = run(script)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


@needs_faults
def test_sizes_and_budgets_are_rounded_up_to_pages() -> None:
    with PagedMemory(3 * PAGE - 7, 2 * PAGE + 1, page_size=PAGE) as memory:
        assert (memory.size, memory.budget, memory.page_size) == (3 * PAGE, 3 * PAGE, PAGE)
        memory.budget = np.int32(2 * PAGE)
        assert memory.budget == 2 * PAGE
        for bad in (PAGE, 4 * PAGE, None, 1 << 60):
            with pytest.raises(BadArgument, match="budget"):
                memory.budget = bad  # type: ignore[assignment]
        assert memory.budget == 2 * PAGE


@pytest.mark.slow
@needs_faults
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize(
    "codec", [{}, {"algorithm": "zstd", "level": 1}, {"algorithm": "lz4hc"}, {"shuffle": 8}]
)
def test_every_codec_and_page_size_works(page_size: int, codec: dict[str, Any]) -> None:
    with PagedMemory(64 * page_size, 4 * page_size, page_size=page_size, **codec) as memory:
        array = memory.array(64 * page_size // 8, "i8")
        array[:] = np.arange(len(array))
        assert np.array_equal(array, np.arange(len(array)))
        await_true(lambda: memory.statistics.resident_bytes <= memory.budget)
        now = memory.statistics
        assert now.evicted_pages >= 60
        assert 0 < now.compressed_bytes < array.nbytes


@pytest.mark.parametrize("call", ["evict", "prefetch", "resident"])
@needs_faults
def test_memory_that_is_not_ours_is_refused(memory: PagedMemory, call: str) -> None:
    use = getattr(memory, call)
    with PagedMemory(SIZE, BUDGET) as other:
        for foreign in (np.zeros(1000), other.array(10), bytearray(100)):
            with pytest.raises(BadArgument, match="no array of this memory"):
                use(foreign)
    for nothing in ([1, 2], None, "a", 3):
        with pytest.raises(NotStorable):
            use(nothing)
    array = memory.array(10)
    beyond = np.lib.stride_tricks.as_strided(array, (PAGE,), (8,))
    with pytest.raises(BadArgument):
        use(beyond)
    with pytest.raises(BadArgument, match="'normal', 'sequential', 'random'"):
        memory.advise(array, "fast")
    with pytest.raises(BadArgument):
        memory.advise(np.zeros(3), "random")


@needs_faults
def test_views_of_every_kind_cover_their_bytes() -> None:
    with PagedMemory(SIZE, SIZE) as memory:
        array = memory.array((64, PAGE), "i1")
        array[:] = 1
        assert evict(memory, array[3:5]) == 2
        assert evict(memory, array[10:20:3]) == 10  # with the gaps between
        array[:] = 2
        assert evict(memory, array[20:10:-1]) == 10
        array[:] = 3
        assert evict(memory, array[:, 5]) == 64
        assert evict(memory, array[7:7]) == evict(memory, np.zeros(0)) == 0
        memory.prefetch(array[0:0])
        memory.advise(array[::2], "random")
        memory.advise(array, "normal")
        with memory.resident(array[0:0]):
            assert memory.statistics.pinned_pages == 0
        array[5] = 4
        assert evict(memory, memoryview(array[5])) == 1
        assert (array[5] == 4).all()
        assert (array[6:] == 3).all()


def test_the_range_of_an_array_is_from_its_lowest_byte_to_its_highest() -> None:
    array = np.zeros((10, 20), "i4")
    start = array.ctypes.data
    assert range_of(array) == (start, 800)
    assert range_of(array[::-1, ::-1]) == (start, 800)
    assert range_of(array[2:4, 5:10:2]) == (start + 180, 80 + 2 * 8 + 4)
    assert range_of(np.broadcast_to(array[0, :1], (50, 1))) == (start, 4)
    assert range_of(array[3:3])[1] == 0
