"""Pool: what is put in comes out, what is freed is given back, and a refusal changes nothing."""

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pool_memory import (
    compact,
    compressed_sizes,
    content,
    contents,
    figures,
    memory_of,
    own_mapping,
    put,
    with_holes,
)

from batchzip.core.memory import allocations
from batchzip.errors import BadArgument, BadHandle, PoolFull
from batchzip.pool import Pool
from batchzip.pool.audit import ONE, RETIRED, SLOT
from batchzip.system.segment import PAGE

PAGE_SIZES = [512, 4096, 65536, 2 << 20]
GRAIN = 16
KEPT = 33 * PAGE
"""Memory that a small pool may keep when all is freed."""


# Round trips


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_objects_come_back_as_they_were_put(page_size: int) -> None:
    sizes = {1, 2, 31, 32, 33, page_size // 3, page_size // 2 + 1, page_size - 1, page_size}
    data = [content(size, size) for size in sizes]
    with Pool(page_size=page_size) as pool:
        handles = put(pool, data) + [pool.malloc(len(one)) for one in data]
        pool.write_many(handles[len(data) :], data)
        pool.check_invariants()
        assert pool.read_many(handles) == data * 2
        assert list(map(pool.read, handles)) == data * 2
        assert pool.lengths(handles).tolist() == [len(one) for one in data * 2]
        assert sorted(pool.handles().tolist()) == sorted(handles)
        assert figures(pool) == (len(handles), 2 * sum(map(len, data)))
        assert pool.free_many(handles) == 2 * sum(map(len, data))
        pool.check_invariants()
        assert figures(pool) == (0, 0)
        compact(pool)
        assert pool.held_bytes == 0


@pytest.mark.parametrize("page_size", [*PAGE_SIZES, 1024, 8192])
def test_every_size_has_a_class_that_wastes_less_than_a_grain(page_size: int) -> None:
    grain = max(page_size // 256, 16)
    with Pool(page_size=page_size) as pool:
        for size in {*range(1, page_size + 1, max(1, page_size // 4096)), page_size}:
            assert 0 <= pool.class_size(size) - (size + 4) < grain
        with pytest.raises(BadArgument):
            pool.class_size(page_size + 1)


@pytest.mark.parametrize("page_size", [0, 256, 4095, 4 << 20, 4096.0, "4096", True, None])
def test_page_size_is_a_power_of_two(page_size: Any) -> None:
    with pytest.raises(BadArgument, match="page_size"):
        Pool(page_size=page_size)


def test_an_empty_pool_is_still_a_pool(pool: Pool) -> None:
    assert pool
    assert put(pool, []) == pool.malloc_many([]).tolist() == pool.read_many([]) == []
    assert pool.free_many([]) == pool.compact() == pool.fragmented_bytes == 0
    pool.write_many([], [])
    assert figures(pool) == (0, 0)
    assert pool.classes() == []
    assert pool.held_bytes == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.array])
def test_any_contiguous_buffer_will_do(pool: Pool, kind: Any) -> None:
    data = content(2000, 1)
    buffer: Any = np.frombuffer(data, np.uint64) if kind is np.array else kind(data)
    handles = [pool.put(buffer), *put(pool, [buffer]), pool.malloc(2000)]
    pool.write(handles[2], buffer)
    assert pool.read_many(handles) == [data] * 3


@pytest.mark.parametrize(
    "wrong", [b"", bytes(4097), 7, None, "text", np.zeros((4, 6), np.uint8)[:, :3]]
)
def test_an_invalid_object_is_refused_and_changes_nothing(pool: Pool, wrong: Any) -> None:
    live = with_holes(pool)
    before = figures(pool)
    for call in (
        lambda: pool.put(wrong),
        lambda: put(pool, [*contents(60), wrong, *contents(60)]),
        lambda: pool.write(next(iter(live)), wrong),
        lambda: pool.write_many(list(live)[:2], [live[next(iter(live))], wrong]),
    ):
        with pytest.raises(BadArgument):
            call()
        pool.check_invariants()
    assert figures(pool) == before
    assert pool.read_many(live) == list(live.values())


@pytest.mark.parametrize("size", [0, -1, 4097, 1 << 70, 1.0, "1", None, True])
def test_sizes_are_from_one_to_a_page(pool: Pool, size: Any) -> None:
    for call in (lambda: pool.malloc(size), lambda: pool.malloc_many([5, size, 5])):
        with pytest.raises(BadArgument, match="must be an integer in 1…4096, not"):
            call()
    assert figures(pool) == (0, 0)


def test_data_is_as_long_as_was_asked_for(pool: Pool) -> None:
    one, two = put(pool, [b"one", b"two"])
    for data in (b"on", b"ones"):
        with pytest.raises(BadArgument, match="for an object of 3"):
            pool.write_many([two, one], [b"new", data])
    with pytest.raises(BadArgument, match="2 handles need as many buffers, not 1"):
        pool.write_many([one, two], [b"new"])
    assert pool.read_many([one, two]) == [b"one", b"two"]


# Handles


def test_handles_are_never_given_twice(pool: Pool) -> None:
    seen: set[int] = set()
    for _ in range(20):
        handles = pool.malloc_many([100] * 50).tolist()
        assert not seen & set(handles)
        assert all(0 <= handle < 1 << 64 for handle in handles)
        seen |= set(handles)
        pool.free_many(handles)


def test_bad_handles_are_refused_and_change_nothing(pool: Pool) -> None:
    live = with_holes(pool)
    stale = pool.malloc(100)
    pool.free(stale)
    fresh = pool.malloc(100)
    assert fresh & SLOT == stale & SLOT  # slots are used again
    word = int(np.frombuffer(pool.allocator.tables()["words"], np.uint64)[fresh & SLOT])
    never = [0, 1, 8, -1, -fresh, ONE, 1 << 80, word, fresh + ONE, fresh + 2 * ONE]
    never += [fresh + (1 << 64), fresh ^ 1 << 47, fresh ^ 1 << 20, fresh | SLOT]
    others: list[Any] = [1.5, float(fresh), "1", None, True, b"", np.uint8(3), np.float64(1)]
    before = figures(pool)
    for bad in [stale, *never, *others]:
        for call in (
            lambda bad=bad: pool.free(bad),
            lambda bad=bad: pool.free_many([*live, bad]),
            lambda bad=bad: pool.read(bad),
            lambda bad=bad: pool.read_many([fresh, bad]),
            lambda bad=bad: pool.lengths([fresh, bad]),
            lambda bad=bad: pool.write_many([fresh, bad], [b"x" * 100] * 2),
        ):
            with pytest.raises(BadHandle):
                call()
    with pytest.raises(BadHandle, match="twice"):
        pool.free_many([*live, next(iter(live))])
    pool.check_invariants()
    assert figures(pool) == before
    assert pool.read_many(live) == list(live.values())
    for same in (np.uint64(fresh), np.int64(fresh)):
        assert len(pool.read(same)) == 100  # type: ignore[arg-type] # as a caller may


def test_a_slot_out_of_generations_is_retired(pool: Pool) -> None:
    handle = pool.malloc(64)
    slot = handle & SLOT
    words = np.frombuffer(own_mapping(pool.descriptors[1]), np.uint64)
    words[slot] = np.uint64(RETIRED - ONE) | (words[slot] & np.uint64(SLOT))
    last = RETIRED - ONE + slot
    with pytest.raises(BadHandle):
        pool.free(handle)
    pool.check_invariants()
    pool.free(last)
    for _ in range(3):
        pool.check_invariants()
        others = pool.malloc_many([64] * 600).tolist()
        assert all(other & SLOT != slot for other in others)
        pool.free_many(others)
        with pytest.raises(BadHandle):
            pool.free(last)


# Memory


def real_sizes(count: int) -> Any:
    """Lengths of compressed pages in a hundred classes, one in 25 of them raw."""
    return np.random.default_rng(count).choice(
        np.array([*compressed_sizes(4000), *[4096] * 160]), count
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "most"), [(200, 1.10), (4096, 1.03), (65_536, 1.02), (300_000, 1.02)]
)
def test_little_more_is_held_than_is_stored(count: int, most: float) -> None:
    rng = np.random.default_rng(1)
    with Pool() as pool:
        sizes = real_sizes(count).tolist()
        parts = [sizes[at : at + 16] for at in range(0, count, 16)]
        handles = np.concatenate(list(map(pool.malloc_many, parts)))
        assert pool.held_bytes / pool.stored_bytes <= most
        assert pool.table_bytes <= 0.03 * pool.stored_bytes + 65536
        for turn in range(3):
            gone = rng.permutation(count)[: count // 2]
            pool.free_many(handles[gone])
            handles[gone] = pool.malloc_many(real_sizes(count + turn)[: len(gone)].tolist())
        if count < 100_000:
            pool.check_invariants()
        compact(pool)
        assert pool.held_bytes / pool.stored_bytes <= 1.03
        pool.free_many(handles[rng.permutation(count)[: count - count // 10]])
        compact(pool)
        assert pool.held_bytes <= 1.03 * pool.stored_bytes + PAGE
        pool.check_invariants()


def shared_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * PAGE // 1024


def test_the_memory_of_the_process_falls_as_objects_are_freed(pool: Pool) -> None:
    before = shared_kib()
    handles = put(pool, contents(8000))
    full = shared_kib()
    assert full - before >= pool.stored_bytes // 1024
    pool.free_many(handles[:4000])
    assert shared_kib() - before <= 0.56 * (full - before)
    pool.free_many(handles[4000:])
    assert pool.held_bytes <= KEPT
    words = 8 * 8000
    assert shared_kib() - before <= (KEPT + words) // 1024 + 8


def test_holes_are_used_before_new_memory(pool: Pool) -> None:
    handles = pool.malloc_many([1000] * 1000)
    held = pool.held_bytes
    pool.free_many(handles[::3])
    pool.malloc_many([1000] * len(handles[::3]))
    assert pool.held_bytes <= held


def test_free_room_serves_any_class(pool: Pool) -> None:
    handles = pool.malloc_many([4096] * 100)
    held = pool.held_bytes
    for size in (100, 2000, 64, 4096, 3000):
        pool.free_many(handles)
        handles = pool.malloc_many([size] * 100)
        pool.check_invariants()
        assert pool.held_bytes <= held


@pytest.mark.parametrize("count", [1, 100])
def test_a_batch_that_replaces_another_asks_the_system_for_nothing(pool: Pool, count: int) -> None:
    pool.malloc_many(compressed_sizes(4096))
    handles = pool.malloc_many([1500] * count)
    held = pool.held_bytes
    pool.free_many(handles)
    before = allocations()
    for _ in range(10):
        pool.free_many(pool.malloc_many([1500] * count))
    assert allocations() == before
    assert pool.held_bytes <= held


def test_growth_asks_the_system_seldom(pool: Pool) -> None:
    before = allocations()
    for size in compressed_sizes(4096):
        pool.malloc(size)
    assert allocations() - before < 4096 * 1500 // PAGE / 2
    before = allocations()
    pool.malloc_many([1500] * 4096)
    assert allocations() - before < 50


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_compaction_keeps_contents_and_is_incremental(pool: Pool, most: int) -> None:
    live = with_holes(pool)
    gone = random.Random(2).sample(list(live), 200)
    pool.free_many(gone)
    for handle in gone:
        del live[handle]
    held = pool.held_bytes
    given = compact(pool, most)
    assert given == held - pool.held_bytes > 0
    pool.check_invariants()
    assert pool.held_bytes <= 1.02 * pool.stored_bytes + PAGE
    assert pool.fragmented_bytes == pool.compact(most) == 0
    assert pool.read_many(live) == list(live.values())


@pytest.mark.parametrize("most", [0, -1, 1.0, True, None])
def test_compaction_is_told_a_number(pool: Pool, most: Any) -> None:
    with pytest.raises(BadArgument, match="max_objects"):
        pool.compact(most)


def test_classes_tell_what_is_held(pool: Pool) -> None:
    live = with_holes(pool)
    lines = pool.classes()
    assert [line.size for line in lines] == sorted({line.size for line in lines})
    assert sum(line.objects for line in lines) == len(live)
    assert sum(line.bytes for line in lines) <= pool.held_bytes
    for line in lines:
        assert 0 < line.zspages <= line.objects <= line.room
        assert line.freeable == line.bytes // line.room * (line.room - line.objects)
    used = sum(line.bytes - line.freeable for line in lines)
    assert used == sum(pool.class_size(len(data)) for data in live.values())


# Damage


@pytest.mark.parametrize("spoilt", [0x00, 0xFF, None])
def test_damage_of_the_memory_between_objects_harms_none(pool: Pool, spoilt: int | None) -> None:
    live = with_holes(pool)
    memory = memory_of(pool)
    kept = np.zeros(min(1 << 24, memory.size), bool)
    for start, stop in map(pool.allocator.extent, live):
        kept[start:stop] = True
    view = np.frombuffer(memory.view, np.uint8)[: pool.held_bytes]
    wrong = random.Random(3).randbytes(len(view)) if spoilt is None else bytes([spoilt]) * len(view)
    spoil = ~kept[: len(view)]
    view[spoil] = np.frombuffer(wrong, np.uint8)[spoil]
    del view
    assert pool.read_many(live) == list(live.values())
    compact(pool, 10)
    pool.check_invariants()
    assert pool.read_many(live) == list(live.values())
    put(pool, contents(100))
    assert pool.free_many(live) == sum(map(len, live.values()))


# The limit


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True])
def test_a_limit_is_a_number_of_bytes(pool: Pool, limit: Any) -> None:
    with pytest.raises(BadArgument, match="max_bytes"):
        Pool(limit)
    with pytest.raises(BadArgument, match="max_bytes"):
        pool.max_bytes = limit
    assert pool.max_bytes is None


def test_a_batch_over_the_limit_changes_nothing(pool: Pool) -> None:
    live = with_holes(pool)
    before = figures(pool)
    batch = contents(400, seed=3)
    for room in (0, PAGE, 10 * PAGE, 50 * PAGE):
        pool.max_bytes = pool.held_bytes + room
        with pytest.raises(PoolFull, match=f"at most {pool.max_bytes} bytes") as full:
            put(pool, batch)
        assert full.value.at_limit
        pool.check_invariants()
        assert figures(pool) == before
    pool.max_bytes = None
    assert pool.read_many(put(pool, batch)) == batch
    assert pool.read_many(live) == list(live.values())


@pytest.mark.parametrize("limit", [0, PAGE - 1, PAGE, 20 * PAGE])
@pytest.mark.parametrize("size", [1, 700, 1500, 4096])
def test_a_pool_is_filled_to_its_limit_again_and_again(limit: int, size: int) -> None:
    fitting = limit // PAGE * PAGE // ((size + 4 + GRAIN - 1) // GRAIN * GRAIN)
    with Pool(limit) as pool:
        for _ in range(3):
            handles = []
            with contextlib.suppress(PoolFull):
                while True:
                    handles.append(pool.malloc(size))
            pool.check_invariants()
            assert len(handles) == fitting
            assert pool.held_bytes <= limit
            pool.free_many(handles[::2])
            pool.compact()
            pool.free_many(handles[1::2])


def test_a_lower_limit_only_refuses_growth(pool: Pool) -> None:
    handles = pool.malloc_many([4000] * 100)
    pool.max_bytes = 10 * PAGE
    assert pool.held_bytes > 97 * PAGE
    with pytest.raises(PoolFull):
        pool.malloc_many([4000] * 5)
    pool.free_many(handles[5:])
    assert len(pool.malloc_many([4000] * 4)) == 4
    with pytest.raises(PoolFull):
        pool.malloc_many([4000] * 4)
