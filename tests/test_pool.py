"""Pool: what is put in comes out, what is freed is given back, and a refusal changes nothing."""

import contextlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
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
from pool_memory import memory_of

from batchzip.core.memory import allocations, fail_allocation
from batchzip.errors import BadArgument, BadHandle, ClosedError, ForkedProcess, PoolFull
from batchzip.pool import Pool
from batchzip.pool.audit import ONE, RETIRED, SLOT
from batchzip.segment import PAGE, Segment

PAGE_SIZES = [512, 4096, 65536, 2 << 20]
GRAIN = 16
KEPT = 33 * PAGE
"""Memory that a small pool may keep when all is freed."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as made:
        yield made
        made.check_invariants()


@pytest.fixture(autouse=True)
def no_failing_allocation() -> Iterator[None]:
    yield
    fail_allocation(0)


def compressed_sizes(count: int, seed: int = 1) -> list[int]:
    """Lengths as of compressed pages: mean 1500, a tail up to the page."""
    rng = random.Random(seed)
    return [min(4096, max(40, int(rng.gammavariate(4, 375)))) for _ in range(count)]


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def contents(count: int, seed: int = 1) -> list[bytes]:
    return [content(size, seed + size) for size in compressed_sizes(count, seed)]


def put(pool: Pool, data: list[Any]) -> list[int]:
    handles: list[int] = pool.put_many(data).tolist()
    return handles


def with_holes(pool: Pool) -> dict[int, bytes]:
    """Fill a pool so that a batch is served from holes, free ranges and new memory alike."""
    data = contents(300)
    handles = put(pool, data)
    pool.free_many(handles[::7])
    return {handle: data[at] for at, handle in enumerate(handles) if at % 7}


def compact(pool: Pool, most: int = 1024) -> int:
    """Compact until nothing is gained any more; return the bytes given back."""
    total, left = 0, pool.fragmented_bytes
    while left:
        total += pool.compact(most)
        left, before = pool.fragmented_bytes, left
        if left >= before:
            break
    return total


def figures(pool: Pool) -> tuple[int, int]:
    return pool.objects, pool.stored_bytes


# Round trips


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_what_is_put_comes_out(page_size: int) -> None:
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
def test_what_cannot_be_an_object_is_refused_and_changes_nothing(pool: Pool, wrong: Any) -> None:
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
        with pytest.raises(BadArgument, match="1 to 4096 bytes"):
            call()
    assert figures(pool) == (0, 0)


def test_data_is_as_long_as_was_asked_for(pool: Pool) -> None:
    one, two = put(pool, [b"one", b"two"])
    for data in (b"on", b"ones"):
        with pytest.raises(BadArgument, match="for an object of 3"):
            pool.write_many([two, one], [b"new", data])
    with pytest.raises(BadArgument, match="1 buffers for 2 handles"):
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
    words = np.frombuffer(Segment.attach(os.dup(pool.descriptors[1])).view, np.uint64)
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


# The limit, and memory that is not there


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


ATTEMPTS: dict[str, Callable[[Pool, list[int]], object]] = {
    "malloc_many": lambda pool, _: pool.malloc_many(compressed_sizes(5000, 4)),
    "malloc": lambda pool, _: pool.malloc(3000),
    "put_many": lambda pool, _: pool.put_many(contents(1200, 5)),
    "read_many": lambda pool, live: pool.read_many(live),
    "write_many": lambda pool, live: pool.write_many(live, pool.read_many(live)),
    "free_many": lambda pool, live: pool.free_many(live[:0]),
    "compact": lambda pool, _: compact(pool, 50),
}


@pytest.mark.parametrize("failing", [1, 1 << 40])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_memory_that_is_not_there_at_any_time_changes_nothing(attempt: str, failing: int) -> None:
    for number in itertools.count(1):
        with Pool() as pool:
            live = with_holes(pool)
            before = figures(pool)
            begun = allocations()
            fail_allocation(number, failing)
            try:
                ATTEMPTS[attempt](pool, list(live))
                done = True
            except (PoolFull, MemoryError):
                done = False
            reached = allocations() - begun >= number
            fail_allocation(0)
            pool.check_invariants()
            assert done or figures(pool) == before
            assert pool.read_many(live) == list(live.values())
            put(pool, contents(10))
        if not reached:
            break


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_pool_that_cannot_be_made_leaves_nothing(number: int) -> None:
    fds = list(Path("/proc/self/fd").iterdir())
    fail_allocation(number, 1 << 40)
    with pytest.raises((PoolFull, OSError)):
        Pool()
    assert list(Path("/proc/self/fd").iterdir()) == fds


def test_little_address_space_is_enough() -> None:
    def work() -> None:
        import resource  # noqa: PLC0415 - for the child alone

        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        limit = used + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
        with Pool() as pool:
            live = dict(zip(put(pool, data := contents(20_000)), data, strict=True))
            pool.check_invariants()
            assert pool.read_many(live) == data
            with pytest.raises(PoolFull):
                pool.malloc_many([4096] * 20_000)
            assert pool.read_many(live) == data

    in_forked_child(work)


# Threads, signals, forks and the end


def test_threads_share_a_pool(pool: Pool) -> None:
    failures: list[BaseException] = []
    ends = threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: dict[int, bytes] = {}
        try:
            for _ in range(100):
                data = [content(rng.randint(1, 4096), rng.random().__hash__()) for _ in range(8)]
                held.update(zip(put(pool, data), data, strict=True))
                gone = rng.sample(sorted(held), len(held) // 2)
                assert pool.read_many(gone) == [held.pop(handle) for handle in gone]
                pool.free_many(gone)
            pool.free_many(list(held))
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    def move() -> None:
        while not ends.is_set():
            pool.compact(16)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    mover = threading.Thread(target=move)
    for thread in (mover, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    ends.set()
    mover.join()
    assert not failures
    assert len(pool) == 0


def test_an_interrupt_leaves_all_of_a_batch_or_nothing(pool: Pool) -> None:
    live = with_holes(pool)
    batch = contents(2000, 6)

    def churn_for_ever() -> None:
        while True:
            pool.free_many(pool.put_many(batch))

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in range(1, 15):
            objects = len(pool)
            signal.setitimer(signal.ITIMER_REAL, delay / 3000)
            with pytest.raises(KeyboardInterrupt):
                churn_for_ever()
            assert len(pool) - objects in (0, len(batch))
            pool.check_invariants()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pool.read_many(live) == list(live.values())


def uses(pool: Pool, handle: int) -> list[Callable[[], object]]:
    return [
        lambda: pool.malloc(1),
        lambda: pool.put(b"x"),
        lambda: put(pool, [b"x"]),
        lambda: pool.read(handle),
        lambda: pool.read_many([handle]),
        lambda: pool.lengths([handle]),
        lambda: pool.write(handle, b"owner"),
        lambda: pool.free(handle),
        lambda: pool.free_many([handle]),
        lambda: len(pool),
        lambda: pool.held_bytes,
        lambda: pool.max_bytes,
        lambda: setattr(pool, "max_bytes", 5),
        lambda: pool.descriptors,
        pool.handles,
        pool.compact,
        pool.classes,
        pool.check_invariants,
    ]


def test_closed_is_closed_and_closing_twice_is_nothing() -> None:
    pool = Pool()
    handle = pool.put(b"data")
    pool.close()
    pool.close()
    for use in uses(pool, handle):
        with pytest.raises(ClosedError):
            use()


def test_a_forked_child_is_refused_and_changes_nothing(pool: Pool) -> None:
    live = with_holes(pool)
    ends = threading.Event()

    def churn() -> None:
        while not ends.is_set():
            pool.free_many(pool.malloc_many([2000] * 50))

    def use_in_every_way() -> None:
        for use in uses(pool, next(iter(live))):
            with pytest.raises(ForkedProcess):
                use()
        pool.close()
        pool.close()
        with pytest.raises(ForkedProcess):
            len(pool)

    churner = threading.Thread(target=churn)  # so that the mutex is held at some of the forks
    churner.start()
    try:
        for _ in range(5):
            in_forked_child(use_in_every_way)
    finally:
        ends.set()
        churner.join()
    assert pool.read_many(live) == list(live.values())


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

    batches = st.lists(st.floats(0, 1), max_size=24)
    seeds = st.integers(0, 1000)
    failing = st.just((0, 0)) | st.tuples(st.integers(1, 6), st.sampled_from([1, 100]))

    @rule(
        target=handles,
        shares=batches,
        seed=seeds,
        times=st.integers(1, 8),
        failing=failing,
        how=seeds,
    )
    def store(
        self, shares: list[float], seed: int, times: int, failing: tuple[int, int], how: int
    ) -> Any:
        data = [content(max(1, int(share * self.page_size)), seed) for share in shares] * times
        fail_allocation(*failing)
        try:
            if how % 2:
                handles = put(self.pool, data)
            else:
                handles = self.pool.malloc_many(map(len, data)).tolist()
        except (PoolFull, MemoryError):
            assert any(failing) or self.pool.max_bytes is not None
            return multiple()
        finally:
            fail_allocation(0)
        if how % 2 == 0:
            self.pool.write_many(handles, data)
        assert not set(handles) & (self.model.keys() | self.dead)
        self.model.update(zip(handles, data, strict=True))
        return multiple(*handles)

    def forget(self, handles: list[int]) -> None:
        for one in handles:
            del self.model[one]
        self.dead.update(handles)

    @rule(picked=st.lists(handles, max_size=12))
    def free_many(self, picked: list[int]) -> None:
        if len(set(picked)) == len(picked) and all(one in self.model for one in picked):
            self.pool.free_many(picked)
            self.forget(picked)
        else:
            with pytest.raises(BadHandle):
                self.pool.free_many(picked)

    @rule(handle=consumes(handles))
    def free(self, handle: int) -> None:
        if handle in self.model:
            assert self.pool.free(handle) == len(self.model[handle])
            self.forget([handle])
        with pytest.raises(BadHandle):
            self.pool.free(handle)

    @rule(seed=seeds)
    def free_most(self, seed: int) -> None:
        gone = [one for one in self.model if random.Random(one ^ seed).random() < 0.8]
        self.pool.free_many(gone)
        self.forget(gone)

    @rule(most=st.sampled_from([1, 5, 1000]), failing=failing)
    def compact(self, most: int, failing: tuple[int, int]) -> None:
        held = self.pool.held_bytes
        fail_allocation(*failing)
        assert self.pool.compact(most) == held - self.pool.held_bytes
        fail_allocation(0)

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
        held = self.pool.held_bytes
        self.pool.max_bytes = None if pages is None else max(0, held + pages * PAGE)

    @rule()
    def spoil_headers(self) -> None:
        view = memory_of(self.pool).view
        for start, _ in map(self.pool.allocator.extent, self.model):
            view[start - 4] ^= 0x55

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_invariants()
        assert figures(self.pool) == (len(self.model), sum(map(len, self.model.values())))
        assert self.pool.read_many(self.model) == list(self.model.values())
        assert sorted(self.pool.handles().tolist()) == sorted(self.model)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


PoolAgainstDict.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None
)
TestPoolAgainstDict = PoolAgainstDict.TestCase
