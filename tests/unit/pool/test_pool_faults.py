"""Pool: missing memory, threads, signals, forks and the end: all of a call is done, or nothing."""

import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.forked import in_forked_child
from support.pool_memory import (
    compact,
    compressed_sizes,
    content,
    contents,
    figures,
    put,
    with_holes,
)

from batchzip.core.memory import allocations, fail_allocation
from batchzip.errors import ClosedError, ForkedProcess, PoolFull
from batchzip.pool import Pool
from batchzip.system.segment import PAGE


@pytest.fixture(autouse=True)
def no_failing_allocation() -> Iterator[None]:
    yield
    fail_allocation(0)


ATTEMPTS: dict[str, Callable[[Pool, list[int]], object]] = {
    "malloc_many": lambda pool, _: pool.malloc_many(compressed_sizes(5000, 4)),
    "malloc": lambda pool, _: pool.malloc(3000),
    "put_many": lambda pool, _: pool.put_many(contents(1200, 5)),
    "read_many": lambda pool, live: pool.read_many(live),
    "write_many": lambda pool, live: pool.write_many(live, pool.read_many(live)),
    "free_many": lambda pool, live: pool.free_many(live[:0]),
    "compact": lambda pool, _: compact(pool, 50),
}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - wherever it comes
                signal.setitimer(signal.ITIMER_REAL, delay / 3000)
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


@pytest.mark.slow
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
