"""Pool: what is put in comes out, what is freed is given back, and a refusal changes nothing."""

import contextlib
import errno
import gc
import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from forked import in_forked_child
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from interrupt_lines import interrupted_at

from batchzip.errors import BadArgument, BadHandle, ClosedError, ForkedProcess, PoolFull
from batchzip.pool import Pool, span
from batchzip.pool.audit import ClassUse
from batchzip.pool.handles import GENERATION_SHIFT, ONE, RETIRED, SLOT
from batchzip.pool.pool import TORN
from batchzip.pool.size_classes import SPAN_PAGES, SizeClasses
from batchzip.segment import PAGE, Segment

PAGE_SIZES = [512, 4096, 65536, 2 << 20]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    # So little address space that the pool has to grow in these tests.
    monkeypatch.setattr(span, "FIRST_BYTES", 64 * SPAN_PAGES * PAGE)
    with Pool() as made:
        yield made
        made.check_invariants()


def compressed_sizes(count: int, seed: int = 1) -> list[int]:
    """Lengths as of compressed pages: mean 1500, a tail up to the page."""
    rng = random.Random(seed)
    return [min(4096, max(40, int(rng.gammavariate(4, 375)))) for _ in range(count)]


def content(size: Any, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def put(pool: Pool, data: list[Any]) -> list[int]:
    if len(data) == 1:
        return [pool.put(data[0])]
    handles: list[int] = pool.put_many(data).tolist()
    return handles


def malloc(pool: Pool, sizes: list[Any]) -> list[int]:
    handles: list[int] = pool.malloc_many(sizes).tolist()
    return handles


def state(pool: Pool) -> tuple[int, int, int, list[ClassUse]]:
    figures = pool.objects, pool.stored_bytes, pool.held_bytes, pool.classes()
    assert pool.held_bytes == pool._arena.spans.segment.held_bytes()
    return figures


def leave_one_hole_a_span(pool: Pool) -> list[int]:
    """Make a pool in which a batch is served from holes, new pages and new spans alike."""
    handles = put(pool, [content(size, size) for size in compressed_sizes(300)])
    pool.free_many(handles[::7])
    pool._arena.spans.drop_spares()  # a refusal for want of memory may give this one back
    return [handle for at, handle in enumerate(handles) if at % 7]


# Size classes


@pytest.mark.parametrize("page_size", [*PAGE_SIZES, 1024, 8192])
def test_every_size_has_a_class_that_holds_it(page_size: int) -> None:
    classes = SizeClasses(page_size)
    sizes = [one.size for one in classes.classes]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == page_size
    for size in {*range(1, page_size + 1, max(1, page_size // 4096)), page_size}:
        index = classes.index(size)
        assert size <= sizes[index]
        assert index == 0 or sizes[index - 1] < size
    for one in classes.classes:
        assert 1 <= one.pages <= SPAN_PAGES
        assert one.capacity == one.pages * max(PAGE, page_size) // one.size
        assert one.size % classes.grain == 0


def test_classes_are_merged_and_waste_little() -> None:
    classes = SizeClasses(4096)
    shapes = [(one.pages, one.capacity) for one in classes.classes]
    assert all(one != other for one, other in itertools.pairwise(shapes))
    assert len(shapes) < 255
    assert all(4096 * one.pages / one.capacity / one.size < 1.02 for one in classes.classes)


@pytest.mark.parametrize("page_size", [0, 256, 4095, 4 << 20, 4096.0, "4096", True, None])
def test_page_size_is_a_power_of_two(page_size: int) -> None:
    with pytest.raises(BadArgument, match="page_size"):
        Pool(page_size=page_size)


# Round trips


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_what_is_put_comes_out(page_size: int) -> None:
    sizes = {1, 2, 31, 32, 33, page_size // 3, page_size // 2 + 1, page_size - 1, page_size}
    data = [content(size, size) for size in sizes]
    with Pool(page_size=page_size) as pool:
        handles = put(pool, data) + [pool.malloc(len(one)) for one in data]
        pool.write_many(handles[len(data) :], data)
        pool.check_invariants()
        assert [bytes(view) for view in pool.read_many(handles)] == data * 2
        assert [bytes(pool.read(handle)) for handle in handles] == data * 2
        assert len(pool) == pool.objects == len(handles)
        assert pool.stored_bytes == 2 * sum(map(len, data))
        pool.free_many(handles)
        pool.check_invariants()
        assert len(pool) == pool.stored_bytes == 0
        assert pool.held_bytes <= SPAN_PAGES * max(PAGE, page_size)


def test_an_empty_pool_is_still_a_pool(pool: Pool) -> None:
    assert pool
    assert put(pool, []) == malloc(pool, []) == []
    assert pool.read_many([]) == []
    pool.free_many([])
    pool.write_many([], [])
    assert state(pool) == (0, 0, 0, [])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "numpy", "strided"])
def test_any_buffer_of_bytes_will_do(pool: Pool, kind: Any) -> None:
    array = np.frombuffer(content(2000, 1), np.uint8)
    data = {"numpy": array, "strided": array.copy().reshape(-1, 2)[:, 0]}.get(kind)
    data = kind(array.tobytes()) if data is None else data
    (handle,) = put(pool, [data])
    assert bytes(pool.read(handle)) == bytes(data)


@pytest.mark.parametrize("wrong", [b"", bytes(4097), 7, None, "text", np.zeros(4, np.int64)])
def test_what_cannot_be_an_object_is_refused_and_changes_nothing(pool: Pool, wrong: Any) -> None:
    handle = pool.put(b"there")
    before = state(pool)
    for call in (lambda: pool.put(wrong), lambda: pool.put_many([wrong])):
        with pytest.raises(BadArgument):
            call()
        assert state(pool) == before
    pool.check_invariants()
    assert pool.free(handle) == 5
    assert pool.stored_bytes == 0


def test_one_object_costs_what_it_costs_among_others(pool: Pool) -> None:
    alone = pool.put(content(1500, 1))
    held = pool.held_bytes
    (among,) = pool.put_many([content(1500, 2)])
    assert (pool.held_bytes - held) % PAGE == 0
    assert [bytes(pool.copy(handle)) for handle in (alone, among)] == [
        content(1500, 1),
        content(1500, 2),
    ]
    pool.max_bytes = 0
    with pytest.raises(PoolFull):
        pool.put(content(4096, 3))
    assert len(pool) == 2


def test_views_are_exact_read_only_and_survive_growth(pool: Pool) -> None:
    handle = put(pool, [b"first"])[0]
    view = pool.read(handle)
    assert view.readonly
    assert len(view) == 5
    before = pool._arena.spans.segment.size
    malloc(pool, [4096] * 3000)
    assert pool._arena.spans.segment.size > before
    assert bytes(view) == bytes(pool.read(handle)) == b"first"
    pool.write(handle, b"later")
    assert bytes(view) == b"later"


def test_handles_are_never_given_twice(pool: Pool) -> None:
    seen: set[int] = set()
    for _ in range(20):
        handles = malloc(pool, [100] * 50)
        assert not seen & set(handles)
        assert all(0 <= handle < 1 << 64 for handle in handles)
        seen |= set(handles)
        pool.free_many(handles)


def test_threads_share_a_pool(pool: Pool) -> None:
    failures = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: dict[int, bytes] = {}
        for step in range(150):
            data = [content(rng.randint(1, 4096), (seed, step, n).__hash__()) for n in range(8)]
            held.update(zip(put(pool, data), data, strict=True))
            gone = rng.sample(sorted(held), len(held) // 2)
            if any(bytes(pool.read(handle)) != held.pop(handle) for handle in gone):
                failures.append(seed)
            pool.free_many(gone)
        pool.free_many(list(held))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(pool) == 0


# Memory


def test_held_is_little_more_than_stored_and_is_given_back(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [content(size, 0) for size in compressed_sizes(16384)]
    figures = []
    held = []
    for _ in range(2):
        handles = put(pool, data)
        figures.append(pool.held_bytes / pool.stored_bytes)
        held.append(state(pool)[2])
        pool.check_invariants()
        pool.free_many(handles)
        pool.check_invariants()
        assert state(pool)[2] <= SPAN_PAGES * PAGE
    assert held[0] == held[1]
    with capsys.disabled():
        print(  # noqa: T201 - a figure to look at, which nothing asserts
            f"\npool: held/stored after a fill of 16384 objects: {figures[0]:.4f}"
        )


def test_holes_are_used_before_new_memory(pool: Pool) -> None:
    handles = malloc(pool, [1000] * 1000)
    held = pool.held_bytes
    pool.free_many(handles[::3])
    assert pool.held_bytes == held
    malloc(pool, [1000] * len(handles[::3]))
    assert pool.held_bytes == held


def shared_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * PAGE // 1024


def test_the_memory_of_the_process_falls_after_freeing_and_compacting(pool: Pool) -> None:
    data = [content(size, size) for size in compressed_sizes(8000)]
    before = shared_kib()
    handles = put(pool, data)
    full = shared_kib()
    assert full - before >= pool.stored_bytes // 1024
    kept = random.Random(2).sample(range(len(data)), len(data) // 10)
    gone = set(kept)
    pool.free_many([handle for at, handle in enumerate(handles) if at not in gone])
    freed = pool.held_bytes
    promised = pool.fragmented_bytes
    given = []
    while gain := pool.compact(100):
        given.append(gain)
        pool.check_invariants()
    assert sum(given) == freed - pool.held_bytes
    assert 0.99 <= sum(given) / promised <= 1.05
    # 800 objects in a hundred classes: most of a page for each class is the round-up.
    assert pool.held_bytes < 1.25 * pool.stored_bytes
    assert shared_kib() - before <= (full - before) // 6
    assert pool.copy_many([handles[at] for at in kept]) == [data[at] for at in kept]


def test_compaction_undoes_ten_rounds_of_churn(pool: Pool) -> None:
    rng = random.Random(3)
    held: dict[int, bytes] = {}
    for turn in range(10):
        data = [content(size, turn) for size in compressed_sizes(8192 - len(held), turn)]
        held.update(zip(put(pool, data), data, strict=True))
        if turn < 9:
            gone = rng.sample(sorted(held), len(held) // 2)
            pool.free_many(gone)
            for one in gone:
                del held[one]
    while pool.compact():
        pass
    pool.check_invariants()
    assert pool.fragmented_bytes == 0
    assert pool.held_bytes / pool.stored_bytes <= 1.05
    assert pool.copy_many(list(held)) == list(held.values())


@pytest.mark.parametrize("most", [1, 2, 7, 50])
def test_compaction_moves_no_more_than_it_may_and_gets_there(pool: Pool, most: int) -> None:
    handles = put(pool, [content(1000, at) for at in range(600)])
    pool.free_many(handles[::3] + handles[1::3])
    words = pool._arena.handles.words
    for _ in range(1000):
        before = words[: pool._arena.handles.slots].copy()
        pool.compact(most)
        pool.check_invariants()
        # All but the epoch; an object that moved twice would count once, so it is a lower bound.
        assert np.count_nonzero(words[1 : len(before)] != before[1:]) <= most
        if pool.fragmented_bytes < 8 * PAGE:
            break
    else:
        pytest.fail("it does not get there")
    assert pool.copy_many(handles[2::3]) == [content(1000, at) for at in range(2, 600, 3)]


@pytest.mark.parametrize("most", [0, -1, 1.0, True, None])
def test_compaction_is_told_a_number(pool: Pool, most: Any) -> None:
    with pytest.raises(BadArgument, match="max_objects"):
        pool.compact(most)


def test_compaction_of_what_has_no_holes_gives_nothing(pool: Pool) -> None:
    assert pool.compact() == pool.fragmented_bytes == 0
    put(pool, [content(1000, 1)] * 50)
    held = pool.held_bytes
    assert pool.fragmented_bytes == pool.compact() == 0
    assert pool.held_bytes == held


def test_a_malloc_and_a_free_in_turn_keep_the_memory(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.free(pool.malloc(1500))
    calls = []
    monkeypatch.setattr(Segment, "reserve", lambda *_: calls.append("reserve"))
    monkeypatch.setattr(Segment, "release", lambda *_: calls.append("release"))
    for _ in range(10):
        pool.free(pool.malloc(1500))
    assert not calls


def test_a_batch_that_replaces_another_needs_no_system_call(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = compressed_sizes(4096)
    handles = malloc(pool, sizes)
    calls = []
    monkeypatch.setattr(Segment, "reserve", lambda *_: calls.append("reserve"))
    monkeypatch.setattr(Segment, "release", lambda *_: calls.append("release"))
    for _ in range(10):
        pool.free_many(handles[:128])
        handles[:128] = malloc(pool, sizes[:128])
    assert not calls


def test_memory_of_neighbours_goes_back_in_one_call(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = malloc(pool, [4096] * 1000)
    spans = pool.classes()[0].spans
    calls = []
    release = Segment.release

    def counted(segment: Segment, offset: int, length: int) -> None:
        calls.append(length)
        release(segment, offset, length)

    monkeypatch.setattr(Segment, "release", counted)
    for at in range(0, 1000, 100):
        pool.free_many(handles[at : at + 100])
        assert state(pool)[0] == 900 - at
    assert len(calls) * 10 <= spans
    assert pool.held_bytes <= SPAN_PAGES * PAGE


def test_what_address_space_a_pool_begins_with_takes_no_memory() -> None:
    with Pool() as pool:
        pool.put_many([b"one", b"two"])
        assert pool._arena.spans.segment.size >= 1 << 34
        assert 0 < state(pool)[2] <= 2 * PAGE


def test_tables_that_were_lengthened_and_no_more_are_put_right(pool: Pool) -> None:
    handles = put(pool, [b"kept"] * 100)
    spans = pool._arena.spans
    # As an interrupt leaves them between two steps of lengthening, far beyond the address space.
    spans.kind.resize(len(spans.kind) + 4096, refcheck=False)
    spans.bump.resize(len(spans.bump) + 4096, refcheck=False)
    pool._state = TORN
    assert [bytes(view) for view in pool.read_many(handles)] == [b"kept"] * 100
    pool.check_invariants()
    malloc(pool, [4096] * 3000)


def test_a_pool_does_with_little_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    # What no system gives, as a limit to the address space would refuse the usual size.
    monkeypatch.setattr(span, "FIRST_BYTES", 1 << 60)
    with Pool() as pool:
        handles = malloc(pool, [4096] * 3000)
        assert len(pool) == len(handles)
        pool.check_invariants()


def test_copy_takes_any_integer_and_refuses_what_is_not_live(pool: Pool) -> None:
    live, dead = put(pool, [b"live", b"dead"])
    pool.free(dead)
    for same in (live, np.uint64(live), np.int64(live)):
        assert pool.copy(same) == b"live"  # type: ignore[arg-type] # as a caller may
    wrong = (
        dead,
        0,
        1,
        -1,
        -live,
        live + ONE,
        live + 2 * ONE,
        live | SLOT,
        1 << 70,
        "live",
        None,
        1.5,
    )
    for handle in wrong:
        with pytest.raises(BadHandle):
            pool.copy(handle)  # type: ignore[arg-type] # as a caller may
    assert pool.copy(live) == b"live"


def test_a_span_number_serves_any_class(pool: Pool) -> None:
    first = malloc(pool, [4096] * 40)
    spans = pool._arena.spans
    size = spans.segment.size
    for wanted in (4096, 100, 2000, 64, 3000):
        pool.free_many(first)
        first = malloc(pool, [wanted] * 40)
        pool.check_invariants()
    assert spans.segment.size == size


def test_classes_tell_what_is_held(pool: Pool) -> None:
    handles = leave_one_hole_a_span(pool)
    lines = pool.classes()
    assert [line.size for line in lines] == sorted({line.size for line in lines})
    assert sum(line.used for line in lines) == len(handles)
    assert sum(line.pages for line in lines) * PAGE == pool.held_bytes
    assert all(0 <= line.used <= line.objects for line in lines)
    assert all(0 <= line.freeable <= line.spans for line in lines)


def test_metadata_is_small_and_outside_the_segment(pool: Pool) -> None:
    malloc(pool, [1500] * 100_000)
    assert pool.table_bytes <= 13.5 * len(pool)
    spans, handles = pool._arena.spans, pool._arena.handles
    tables = (spans.kind, spans.bump, spans.used, spans.extent, spans.owner, handles.free)
    kept = sum(table.nbytes for table in tables) + handles.segment.held_bytes()
    assert kept <= pool.table_bytes


# Errors


@pytest.mark.parametrize("size", [0, -1, 4097, 1 << 70, 1.0, "1", None])
def test_sizes_are_from_one_to_a_page(pool: Pool, size: Any) -> None:
    handles = leave_one_hole_a_span(pool)
    before = state(pool)
    for call in (lambda: pool.malloc(size), lambda: malloc(pool, [5, size, 5])):
        with pytest.raises(BadArgument, match="1 to 4096 bytes"):
            call()
    assert state(pool) == before
    pool.free_many(handles)


@pytest.mark.parametrize(
    "wrong", [b"", bytes(4097), 5, None, "text", np.zeros(9, np.int32), np.zeros((4, 4), np.uint8)]
)
def test_a_wrong_buffer_in_a_batch_changes_nothing(pool: Pool, wrong: Any) -> None:
    leave_one_hole_a_span(pool)
    before = state(pool)
    batch = [content(size, 1) for size in compressed_sizes(60, seed=2)]
    with pytest.raises(BadArgument):
        put(pool, [*batch, wrong, *batch])
    pool.check_invariants()
    assert state(pool) == before


def test_data_is_as_long_as_was_asked_for(pool: Pool) -> None:
    one, two = put(pool, [b"one", b"two"])
    wrong: list[Any] = [b"", b"on", b"ones", 5, np.zeros((4, 6), np.uint8)[:, :3]]
    for data in wrong:
        with pytest.raises(BadArgument):
            pool.write_many([two, one], [b"new", data])
    with pytest.raises(BadArgument, match="1 buffers for 2 handles"):
        pool.write_many([one, two], [b"new"])
    assert [bytes(pool.read(handle)) for handle in (one, two)] == [b"one", b"two"]


def test_bad_handles_are_refused_and_change_nothing(pool: Pool) -> None:
    live = leave_one_hole_a_span(pool)
    stale = pool.malloc(100)
    pool.free(stale)
    fresh = pool.malloc(100)
    assert fresh & SLOT == stale & SLOT
    before = state(pool)
    contents = [bytes(view) for view in pool.read_many(live)]
    never = [
        0,
        1,
        -1,
        -fresh,
        8,
        1 << 48,
        1 << 80,
        fresh + (1 << 48),
        fresh + (2 << 48),
        fresh + (1 << 64),
        fresh ^ 1 << 47,
        fresh ^ 1 << 20,
    ]
    others: list[Any] = [1.5, float(fresh), "1", None, True, b"", np.uint8(3), np.float64(1)]
    for bad in [stale, *never, *others]:
        with pytest.raises(BadHandle):
            pool.free(bad)
        with pytest.raises(BadHandle):
            pool.free_many([*live, bad])
        with pytest.raises(BadHandle):
            pool.read(bad)
        with pytest.raises(BadHandle):
            pool.read_many([fresh, bad])
        with pytest.raises(BadHandle):
            pool.write_many([fresh, bad], [b"x" * 100] * 2)
    with pytest.raises(BadHandle):
        pool.free_many([*live, live[0]])
    pool.check_invariants()
    assert state(pool) == before
    assert [bytes(view) for view in pool.read_many(live)] == contents
    pool.free_many([*live, fresh])


def test_free_words_of_a_slot_are_no_handle(pool: Pool) -> None:
    handle = pool.malloc(10)
    pool.free(handle)
    word = pool._arena.handles.words[handle & 0xFF]
    for bad in (word, (word >> GENERATION_SHIFT) << GENERATION_SHIFT | handle & 0xFF):
        with pytest.raises(BadHandle):
            pool.free(bad)


def test_numpy_integers_are_handles(pool: Pool) -> None:
    handles: Any = np.array(put(pool, [b"a", b"b", b"c"]), np.uint64)
    assert [bytes(view) for view in pool.read_many(handles)] == [b"a", b"b", b"c"]
    pool.free_many(handles)
    assert type(pool.malloc(5)) is int


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True])
def test_a_limit_is_a_number_of_bytes(pool: Pool, limit: Any) -> None:
    with pytest.raises(BadArgument, match="max_bytes"):
        Pool(limit)
    with pytest.raises(BadArgument, match="max_bytes"):
        pool.max_bytes = limit
    assert pool.max_bytes is None


def test_nothing_is_allocated_at_limit_zero() -> None:
    with Pool(0) as pool:
        with pytest.raises(PoolFull, match="0 of at most 0 bytes"):
            pool.malloc(1)
        assert state(pool) == (0, 0, 0, [])
        pool.check_invariants()


def test_a_batch_over_the_limit_changes_nothing(pool: Pool) -> None:
    handles = leave_one_hole_a_span(pool)
    before = state(pool)
    batch = [content(size, 3) for size in compressed_sizes(400, seed=3)]
    for room in (0, PAGE, 10 * PAGE, 50 * PAGE):
        pool.max_bytes = pool.held_bytes + room
        with pytest.raises(PoolFull, match=f"at most {pool.max_bytes} bytes"):
            put(pool, batch)
        pool.check_invariants()
        assert state(pool) == before
    pool.max_bytes = None
    assert [bytes(view) for view in pool.read_many(put(pool, batch))] == batch
    pool.free_many(handles)


def test_a_lower_limit_only_refuses_growth(pool: Pool) -> None:
    handles = malloc(pool, [4000] * 100)
    pool.max_bytes = 10 * PAGE
    assert pool.max_bytes == 10 * PAGE
    assert pool.held_bytes == 100 * PAGE
    with pytest.raises(PoolFull):
        pool.malloc(4000)
    pool.free_many(handles[5:])
    assert len(malloc(pool, [4000] * 5)) == 5
    with pytest.raises(PoolFull):
        pool.malloc(4000)


def test_at_the_limit_a_page_that_is_held_is_filled() -> None:
    size = 1904  # two of them fit a page
    with Pool() as pool:
        first, *others = pool.malloc_many([size] * 3).tolist()
        pool.free_many(others)
        pool.compact()
        pool.max_bytes = pool.held_bytes
        second = pool.malloc(size)
        assert pool.held_bytes == pool.max_bytes
        assert first != second
        with pytest.raises(PoolFull):
            pool.malloc(size)
        pool.check_invariants()


def test_the_spare_gives_way_to_the_limit() -> None:
    with Pool(PAGE) as pool:
        for size in (100, 4096, 2000, 33):
            pool.free(pool.malloc(size))
            pool.check_invariants()
            assert pool.held_bytes == PAGE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("nth", [1, 2, 7, 20])
def test_memory_that_is_not_there_changes_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, code: int, nth: int
) -> None:
    leave_one_hole_a_span(pool)
    before = state(pool)
    calls = []
    reserve = Segment.reserve

    def refuse(segment: Segment, offset: int, length: int) -> None:
        calls.append(length)
        if len(calls) >= nth:
            raise OSError(code, os.strerror(code))
        reserve(segment, offset, length)

    batch = [content(size, 4) for size in compressed_sizes(300, seed=4)]
    with monkeypatch.context() as patched:
        patched.setattr(Segment, "reserve", refuse)
        with pytest.raises(PoolFull, match=os.strerror(code)):
            put(pool, batch)
    pool.check_invariants()
    assert state(pool) == before
    assert len(put(pool, batch)) == len(batch)


def test_address_space_that_is_not_there_changes_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_one_hole_a_span(pool)
    before = state(pool)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no address space")

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "grow", refuse)
        with pytest.raises(PoolFull, match="address space"):
            malloc(pool, [4096] * 5000)
    pool.check_invariants()
    assert state(pool) == before


def test_another_system_error_is_passed_on_and_repaired(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_one_hole_a_span(pool)
    before = pool.objects, pool.stored_bytes

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "reserve", refuse)
        with pytest.raises(OSError, match="broken"):
            malloc(pool, [4096] * 5)
    pool.check_invariants()
    assert (pool.objects, pool.stored_bytes) == before


def test_a_slot_out_of_generations_is_retired(pool: Pool) -> None:
    handle = pool.malloc(64)
    table = pool._arena.handles
    slot = handle & 0xFFFF
    last = RETIRED - ONE + slot
    table.words[slot] = last - slot + (table.words[slot] & SLOT)

    def retired() -> int:
        return int(np.count_nonzero(table.words == RETIRED))

    with pytest.raises(BadHandle):
        pool.free(handle)
    with pytest.raises(BadHandle):
        pool.free_many([last, 12345])
    assert retired() == 0
    pool.check_invariants()
    pool.free(last)
    assert retired() == 1
    pool.check_invariants()
    for _ in range(3):
        others = malloc(pool, [64] * 600)
        assert all(other & 0xFFFF != slot for other in others)
        with pytest.raises(BadHandle):
            pool.free(last)
        pool.check_invariants()
        pool._state = 1  # as after an interrupt: repaired by the next call
        pool.check_invariants()
        pool.free_many(others)
    assert retired() == 1


# Interrupts


def of_the_pool(file: Path) -> bool:
    return file.name in ("arena.py", "span.py", "handles.py", "compaction.py")


@pytest.mark.parametrize("kind", ["put", "free", "put one", "free one"])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(kind: Any) -> None:
    nth = 0
    finished = False
    batch = [content(size, 5) for size in (100, 4096, 1500, 1500, 3000, 4096)]
    with Pool() as pool:
        first = batch[:2]
        kept = put(pool, first)
        if kind.endswith("one"):
            del batch[1:]
        while not finished:
            nth += 1
            mine = put(pool, batch)
            count = len(pool)
            done: list[int] = []

            def work(mine: list[int] = mine, done: list[int] = done) -> None:
                if kind.startswith("put"):
                    done += put(pool, batch)
                else:
                    pool.free_many(mine)

            finished = interrupted_at(nth, work, of_the_pool) is None
            pool.check_invariants()
            state(pool)
            if kind.startswith("put"):
                assert len(pool) == count + (len(batch) if finished else 0)
                pool.free_many(done + mine)
            elif len(pool) == count:
                assert pool.copy_many(mine) == batch
                pool.free_many(mine)
            assert pool.copy_many(kept) == first
            assert len(pool) == len(kept)


def test_a_compaction_that_is_interrupted_at_any_line_loses_nothing() -> None:
    nth = 0
    finished = False
    while not finished:
        nth += 3
        with Pool() as pool:
            data = {one: content(1500 + one % 3 * 600, one) for one in range(80)}
            handles = put(pool, list(data.values()))
            pool.free_many(handles[::2])
            finished = interrupted_at(nth, pool.compact, of_the_pool) is None
            pool.check_invariants()
            assert pool.copy_many(handles[1::2]) == list(data.values())[1::2]
            while pool.compact():
                pool.check_invariants()
            assert pool.fragmented_bytes == 0
            assert pool.copy_many(handles[1::2]) == list(data.values())[1::2]


# The end


def test_closed_is_closed_and_closing_twice_is_nothing() -> None:
    pool = Pool()
    handle = put(pool, [b"data"])[0]
    view = pool.read(handle)
    pool.close()
    pool.close()
    for use in (
        lambda: pool.malloc(1),
        lambda: put(pool, [b"x"]),
        lambda: pool.read(handle),
        lambda: pool.write(handle, b"more"),
        lambda: pool.free(handle),
        lambda: len(pool),
        lambda: pool.held_bytes,
        lambda: pool.stored_bytes,
        lambda: setattr(pool, "max_bytes", 5),
        pool.classes,
        pool.check_invariants,
    ):
        with pytest.raises(ClosedError):
            use()
    assert bytes(view) == b"data"


def test_a_forked_child_is_refused_and_changes_nothing() -> None:
    with Pool() as pool:
        handle = put(pool, [b"owner"])[0]
        pool._lock.acquire()  # as if another thread held it

        def use_in_every_way() -> None:
            for use in (
                lambda: pool.malloc(1),
                lambda: pool.read(handle),
                lambda: pool.free(handle),
                lambda: pool.held_bytes,
            ):
                with pytest.raises(ForkedProcess):
                    use()
            pool.close()
            pool.close()

        try:
            in_forked_child(use_in_every_way)
        finally:
            pool._lock.release()
        assert bytes(pool.read(handle)) == b"owner"
        pool.check_invariants()


def test_an_interrupt_by_signal_is_survived(pool: Pool) -> None:
    batch = [content(size, 6) for size in compressed_sizes(2000)]

    def work() -> None:
        while True:
            pool.free_many(put(pool, batch))

    gc.disable()  # an interrupt within a callback of the collector's could not be caught
    for delay in range(1, 12):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, delay / 3000)
        try:
            with pytest.raises(KeyboardInterrupt):
                work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        pool.check_invariants()
    gc.enable()


# Against a model


class PoolAgainstDict(RuleBasedStateMachine):
    """A pool and a dict from handle to bytes go through the same steps."""

    handles = Bundle("handles")

    @initialize(page_size=st.sampled_from(PAGE_SIZES))
    def start(self, page_size: int) -> None:
        self.pool = Pool(page_size=page_size)
        self.page_size = page_size
        self.model: dict[int, bytes] = {}
        self.dead: set[int] = set()

    def fill(self, shares: list[float], seed: int) -> list[bytes]:
        sizes = [max(1, int(share * self.page_size)) for share in shares]
        return [content(size, seed + at) for at, size in enumerate(sizes)]

    def enter(self, handles: list[int], data: list[bytes]) -> Any:
        assert not set(handles) & (self.model.keys() | self.dead)
        self.model.update(zip(handles, data, strict=True))
        return multiple(*handles)

    batches = st.lists(st.floats(0, 1), max_size=24)
    seeds = st.integers(0, 1000)

    @rule(target=handles, shares=batches, seed=seeds, how=st.sampled_from(["put", "many", "one"]))
    def store(self, shares: list[float], seed: int, how: str) -> Any:
        data = self.fill(shares, seed)
        if how == "one":
            data = data[:1]
        sizes = [len(one) for one in data]
        held = self.pool.held_bytes
        try:
            if how == "put":
                handles = put(self.pool, data)
            elif how == "many":
                handles = malloc(self.pool, sizes)
            else:
                handles = [self.pool.malloc(size) for size in sizes]
        except PoolFull:
            assert self.pool.max_bytes is not None
            assert self.pool.held_bytes <= held
            return multiple()
        if how != "put":
            self.pool.write_many(handles, data)
        return self.enter(handles, data)

    @rule(picked=st.lists(handles, max_size=12))
    def free_many(self, picked: list[int]) -> None:
        good = len(set(picked)) == len(picked) and all(one in self.model for one in picked)
        if not good:
            with pytest.raises(BadHandle):
                self.pool.free_many(picked)
            return
        self.pool.free_many(picked)
        for one in picked:
            del self.model[one]
            self.dead.add(one)

    @rule(handle=consumes(handles))
    def free(self, handle: int) -> None:
        if handle in self.model:
            self.pool.free(handle)
            del self.model[handle]
            self.dead.add(handle)
        with pytest.raises(BadHandle):
            self.pool.free(handle)

    @rule(seed=seeds)
    def free_most(self, seed: int) -> None:
        gone = [one for one in self.model if random.Random(one ^ seed).random() < 0.8]
        self.pool.free_many(gone)
        for one in gone:
            del self.model[one]
            self.dead.add(one)

    @rule(most=st.sampled_from([1, 5, 1000]))
    def compact(self, most: int) -> None:
        promised, held = self.pool.fragmented_bytes, self.pool.held_bytes
        given = self.pool.compact(most)
        assert 0 <= given == held - self.pool.held_bytes
        assert most == 1000 or given <= promised + 8 * max(PAGE, self.page_size)

    @rule(picked=st.lists(handles, min_size=1, max_size=6))
    def free_twice(self, picked: list[int]) -> None:
        with pytest.raises(BadHandle):
            self.pool.free_many([*picked, picked[-1]])

    @rule(handle=handles, seed=seeds)
    def overwrite(self, handle: int, seed: int) -> None:
        data = content(len(self.model.get(handle, b"?")), seed)
        if handle in self.model:
            self.pool.write(handle, data)
            self.model[handle] = data
        else:
            with pytest.raises(BadHandle):
                self.pool.write(handle, data)

    @rule(pages=st.none() | st.integers(-8, 8))
    def limit(self, pages: int | None) -> None:
        if pages is None:
            self.pool.max_bytes = None
        else:
            self.pool.max_bytes = max(0, self.pool.held_bytes + pages * PAGE)

    @rule()
    def interrupted(self) -> None:
        self.pool._state = 1

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_invariants()
        assert len(self.pool) == len(self.model)
        assert self.pool.stored_bytes == sum(map(len, self.model.values()))
        assert self.pool.held_bytes == self.pool._arena.spans.segment.held_bytes()
        assert self.pool.copy_many(self.model) == list(self.model.values())
        assert sorted(self.pool.handles().tolist()) == sorted(self.model)
        views = self.pool.read_many(self.model)
        assert all(view == data for view, data in zip(views, self.model.values(), strict=True))

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


PoolAgainstDict.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, database=None
)
TestPoolAgainstDict = PoolAgainstDict.TestCase


def until_full(pool: Pool, size: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(PoolFull):
        while True:
            found += malloc(pool, [size])
    return found


@pytest.mark.parametrize("size", [96, 208, 700, 1500])
def test_a_pool_at_its_limit_uses_the_rest_of_a_page_that_compaction_left(size: int) -> None:
    """The last object of a lowered span shares its page with room for more, which needs no memory."""
    with Pool() as pool:
        handles = malloc(pool, [size] * 400)
        for kept in range(400, 0, -1):
            pool.free(handles[kept - 1])
            if kept % 7 == 0:
                while pool.compact():
                    pass
                pool.max_bytes = pool.held_bytes
                extra = until_full(pool, size)
                pool.free_many(extra)
                pool.check_invariants()
                pool.max_bytes = None
