"""Threads share a store: every page loaded is a version that was current during the call."""

import contextlib
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from support.stamps import SIZE, stamp, stamped

from batchzip import Engine, PageNotStored, StoreRejected, SwapStore

clock = itertools.count(1)
"""Moments in their order: next() is one step."""


@dataclass(frozen=True)
class Write:
    """A store or an invalidation of one index, from when to when; version 0: nothing is there."""

    begin: int
    end: int
    version: int


class History:
    """What was done to each index, to judge afterwards what was read."""

    def __init__(self, indices: int) -> None:
        self.writes: list[list[Write]] = [[Write(0, 0, 0)] for _ in range(indices)]
        self.reads: list[tuple[int, int, int, int]] = []

    def wrote(self, indices: range, begin: int, version: int) -> None:
        write = Write(begin, next(clock), version)
        for index in indices:
            self.writes[index].append(write)

    def read(self, index: int, begin: int, version: int) -> None:
        self.reads.append((index, begin, next(clock), version))

    def check(self) -> None:
        """Each version read was there at some moment of the read, as far as clocks can tell."""
        for index, begin, end, version in self.reads:
            writes = self.writes[index]
            assert any(
                write.version == version
                and write.begin < end
                and not any(write.end < later.begin and later.end < begin for later in writes)
                for write in writes
            ), f"index {index}: version {version} was read, but was not current in {begin}…{end}"


@contextlib.contextmanager
def hurried_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_all(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, and raise what the first of them raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            errors.append(error)

    with hurried_threads():
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


INDICES = 40
FOLIO = 12


def overlapping(
    store: SwapStore, seed: int, versions: Iterator[int], history: History, steps: int
) -> None:
    """Store, load and invalidate folios at random that overlap those of other threads."""
    rng = random.Random(seed)
    for _ in range(steps):
        count = rng.randrange(1, FOLIO)
        first = rng.randrange(INDICES - count)
        folio = range(first, first + count)
        action = rng.choices(["store", "load", "load_many", "invalidate"], [5, 6, 3, 1])[0]
        begin = next(clock)
        if action == "store":
            version = next(versions)
            try:
                store.store(first, [stamped(index, version) for index in folio])
            except StoreRejected:
                version = 0
            history.wrote(folio, begin, version)
        elif action == "invalidate":
            store.invalidate(first, count)
            history.wrote(folio, begin, 0)
        elif action == "load":
            try:
                index, version = stamp(bytes(store.load(first)))
            except PageNotStored:
                index, version = first, 0
            assert index == first
            history.read(first, begin, version)
        else:
            try:
                pages = store.load_many(folio)
            except PageNotStored as missing:
                history.read(missing.index, begin, 0)
                continue
            for index, page in zip(folio, pages, strict=True):
                found, version = stamp(page.tobytes())
                assert found == index
                history.read(index, begin, version)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_overlapping_folios_of_several_threads_are_linearizable_page_by_page(
    algorithm: str, seed: int
) -> None:
    history = History(INDICES)
    versions = itertools.count(1)
    with (
        Engine(algorithm, backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine, max_batch=5) as store,
    ):
        run_all(
            *(
                lambda thread=thread: overlapping(
                    store, 100 * seed + thread, versions, history, 500
                )
                for thread in range(4)
            )
        )
        store.check_invariants()
        assert store.counters.decompress_fail == 0
        history.check()
        store.invalidate(0, INDICES)
        assert store.compressed_bytes == 0
        store.check_invariants()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_while_the_limit_swings_no_load_ever_gives_what_was_replaced(seed: int) -> None:
    history = History(INDICES)
    versions = itertools.count(1)
    with (
        Engine("lz4", backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine, max_pool_bytes=1 << 20) as store,
    ):

        def swing() -> None:
            rng = random.Random(seed)
            for _ in range(300):
                store.max_pool_bytes = rng.choice([0, 4096, 20480, 1 << 20])

        run_all(
            swing,
            *(
                lambda thread=thread: overlapping(
                    store, 100 * seed + thread, versions, history, 400
                )
                for thread in range(3)
            ),
        )
        store.check_invariants()
        history.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_folio_is_seen_whole_or_not_at_all(seed: int) -> None:
    folios = [range(500, 524), range(524, 548)]  # the first lies across a block of the table
    versions = itertools.count(1)
    stop = threading.Event()
    whole: set[str] = set()
    with (
        Engine("lz4", backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine, max_batch=4) as store,
    ):

        def write(thread: int) -> None:
            rng = random.Random(10 * seed + thread)
            for _ in range(120):
                folio = rng.choice(folios)
                if rng.random() < 0.3:
                    assert store.invalidate(folio[0], len(folio)) in (0, len(folio))
                else:
                    version = next(versions)
                    store.store(folio[0], [stamped(index, version) for index in folio])

        def write_all() -> None:
            try:
                write(1)
            finally:
                stop.set()

        def look() -> None:
            rng = random.Random(seed)
            while not stop.is_set():
                folio = rng.choice(folios)
                try:
                    pages = store.load_many(folio)
                except PageNotStored as missing:
                    assert missing.index == folio[0]  # noqa: PT017 - both outcomes are right
                    whole.add("absent")
                    continue
                seen = [stamp(page.tobytes()) for page in pages]
                assert [index for index, _ in seen] == list(folio)
                assert len({version for _, version in seen}) == 1
                whole.add("there")

        def gauges() -> None:
            while not stop.is_set():
                assert store.counters.stored_pages % 24 == 0
                assert len(store) % 24 == 0

        run_all(write_all, lambda: write(2), look, gauges)
        store.check_invariants()
    assert whole


@pytest.mark.slow
def test_the_count_of_pages_never_wavers_while_they_are_overwritten() -> None:
    stop = threading.Event()
    with (
        Engine("lz4", backend="sequential", page_size=SIZE) as engine,
        SwapStore(engine) as store,
    ):
        store.store(0, [stamped(index, 1) for index in range(24)])

        def overwrite() -> None:
            try:
                for version in range(2, 400):
                    store.store(0, [stamped(index, version) for index in range(24)])
            finally:
                stop.set()

        def count() -> None:
            while not stop.is_set():
                assert store.counters.stored_pages == 24
                assert len(store) == 24

        run_all(overwrite, count)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_a_page_that_changes_while_it_is_stored_is_never_an_entry_that_cannot_be_read(
    algorithm: str,
) -> None:
    rng = np.random.default_rng(1)
    looks = [
        np.zeros(4096, np.uint8),
        rng.integers(0, 256, 4096, np.uint8),
        np.resize(rng.integers(0, 256, 100, np.uint8), 4096),
    ]
    pages = np.zeros((16, 4096), np.uint8)
    stop = threading.Event()
    with (
        Engine(algorithm, backend="sequential") as engine,
        SwapStore(engine, max_batch=4) as store,
    ):

        def change() -> None:
            for turn in itertools.count():
                if stop.is_set():
                    return
                pages[turn % 16] = looks[turn % 3]

        def keep() -> None:
            try:
                for _ in range(300):
                    store.store(0, pages)
                    assert store.load_many(range(16)).shape == (16, 4096)
                    store.check_invariants()
            finally:
                stop.set()

        run_all(change, keep)
        assert store.counters.decompress_fail == 0
        store.store(0, pages)
        assert store.load_many(range(16)).tobytes() == pages.tobytes()


@pytest.mark.slow
def test_threads_on_workers_get_their_own_pages_back() -> None:
    history = History(INDICES)
    versions = itertools.count(1)
    with Engine("lz4", backend="workers", workers=1, page_size=SIZE) as engine:
        assert engine.wait_ready()
        with SwapStore(engine) as store:
            run_all(
                *(
                    lambda thread=thread: overlapping(store, thread, versions, history, 100)
                    for thread in range(3)
                )
            )
            store.check_invariants()
            history.check()
            assert store.counters.decompress_fail == 0
