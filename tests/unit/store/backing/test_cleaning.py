"""Sparse zones of the backing file are rewritten, so that the file is as short as its contents."""

import errno
import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.entries import in_file
from support.faulty_file import FaultyFile
from support.store_pages import SIZE, noise, text

from batchzip import CorruptPage, Engine, StoreRejected, SwapStore
from batchzip.store.reclaim import cleaning

ZONE = 1 << 20
PAGES = 4 * ZONE // SIZE


def fill(store: SwapStore, count: int = PAGES) -> None:
    """Put `count` pages that do not shrink in the file: a zone has 256 of them."""
    for start in range(0, count, 256):
        store.store(start, [noise(number) for number in range(start, min(count, start + 256))])
    assert store.writeback(count) == count


def thin(store: SwapStore, keep: int, count: int = PAGES) -> list[int]:
    """Invalidate all but every `keep`th page; which are left."""
    for index in range(count):
        if index % keep:
            store.invalidate(index)
    return list(range(0, count, keep))


def test_cleaning_shrinks_a_file_to_its_live_tenth(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path / "swap") as store:
        path = Path(store.status()["backing"])
        fill(store)
        left = thin(store, 10)
        assert store.counters.backing_file_size == PAGES * SIZE
        assert path.stat().st_blocks * 512 >= PAGES * SIZE
        freed = store.compact()
        assert freed >= PAGES * SIZE * 8 // 10
        assert store.counters.backing_file_size == len(left) * SIZE
        assert path.stat().st_blocks * 512 <= len(left) * SIZE + 2 * SIZE
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        assert store.counters.backed_pages == len(left)
        store.check_invariants()
        assert store.check().ok


def test_pages_of_groups_are_moved_too(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path) as store:
        group = store.group("other")
        for start in range(0, PAGES, 256):
            group.store(start, [noise(number) for number in range(start, start + 256)])
        group.writeback(PAGES)
        group.invalidate(7, PAGES - 7)
        store.compact()
        assert store.counters.backing_file_size == 7 * SIZE
        assert group.load_many(range(7)).tobytes() == b"".join(map(noise, range(7)))
        store.check_invariants()


def test_a_mostly_live_file_is_not_cleaned(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path) as store:
        fill(store)
        for index in range(0, PAGES, 4):
            store.invalidate(index)
        store.compact()
        assert store.counters.backing_file_size == PAGES * SIZE


def test_a_damaged_page_stays_and_the_others_move(engine: Engine) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file) as store:
        fill(store)
        left = thin(store, 10)
        file.content[in_file(store, 0)[0]] ^= 1
        store.compact()
        with pytest.raises(CorruptPage):
            store.load(0)
        assert store.load_many(left[1:]).tobytes() == b"".join(map(noise, left[1:]))
        assert store.counters.backing_file_size <= ZONE + len(left) * SIZE
        store.check_invariants()


@pytest.mark.parametrize("call", ["pwrite", "pread", "sync"])
@pytest.mark.parametrize("after", range(3))
def test_a_fault_at_any_call_loses_nothing(engine: Engine, call: str, after: int) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file, max_batch=16) as store:
        fill(store)
        left = thin(store, 10)
        failing = Countdown(file, call, after)
        with pytest.raises(OSError, match="error"):
            store.compact()
        failing.end()
        store.check_invariants()
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        store.compact()
        store.check_invariants()
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        assert store.counters.backing_file_size < PAGES * SIZE // 2


class Countdown:
    """Lets some calls of a file through, and has those after them fail."""

    def __init__(self, file: FaultyFile, call: str, after: int) -> None:
        self.file, self.call, self.left = file, call, after
        self.method = getattr(file, call)
        setattr(file, call, self)

    def __call__(self, *arguments: object) -> object:
        if not self.left:
            raise OSError(errno.EIO, "an error by the test")
        self.left -= 1
        return self.method(*arguments)

    def end(self) -> None:
        setattr(self.file, self.call, self.method)


def test_a_file_at_its_limit_is_cleaned_before_a_folio_is_rejected(
    engine: Engine, tmp_path: Path
) -> None:
    with SwapStore(
        engine,
        max_pool_bytes=0,
        backing=tmp_path,
        max_backing_bytes=PAGES * SIZE + 40 * SIZE + ZONE // 4,  # which are kept for cleaning
        max_batch=32,
    ) as store:
        for start in range(0, PAGES, 32):
            store.store(start, [noise(number) for number in range(start, start + 32)])
        with pytest.raises(StoreRejected):
            store.store(PAGES, [noise(number) for number in range(64)])
        left = thin(store, 10)
        store.store(PAGES, [noise(number) for number in range(64)])
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        assert store.load(PAGES + 63) == noise(63)
        store.check_invariants()


@pytest.mark.parametrize("folio", [1, 20])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_file_at_its_limit_takes_pages_in_the_place_of_others(
    engine: Engine, folio: int, share: float
) -> None:
    """As long as what lives is well below the limit, pages may change as often as they like."""
    rng, pages = random.Random(1), [noise(seed) for seed in range(folio)]
    count = int(share * ZONE) // SIZE
    with SwapStore(engine, max_pool_bytes=0, backing=io.BytesIO(), max_backing_bytes=ZONE) as store:
        for _ in range(5 * ZONE // SIZE // folio):
            store.store(rng.randrange(count - folio + 1), pages)
            assert store.counters.backing_file_size <= ZONE
        assert store.counters.pool_limit_hit
        assert not store.counters.reject_reclaim_fail
        store.check_invariants()
        assert store.check().ok


@pytest.mark.slow
def test_threads_take_turns_to_make_room(engine: Engine) -> None:
    threads, folio, count = 4, 10, 2 * ZONE // SIZE // 6
    pages = [noise(seed) for seed in range(folio)]
    with SwapStore(
        engine, max_pool_bytes=0, backing=io.BytesIO(), max_backing_bytes=2 * ZONE
    ) as store:

        def use(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(200):
                store.store(seed * 10_000 + rng.randrange(count - folio + 1), pages)

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(use, seed) for seed in range(threads)]:
                done.result()
        assert not store.counters.reject_reclaim_fail
        store.check_invariants()
        assert store.check().ok


@pytest.mark.slow
def test_one_thread_cleans_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[int] = []

    def clean(*_: object) -> None:
        busy.append(1)
        time.sleep(0.0005)  # lets others in
        assert busy.pop() == 1
        assert not busy

    monkeypatch.setattr(cleaning, "_clean", clean)
    with SwapStore(
        engine, max_pool_bytes=0, backing=io.BytesIO(), max_backing_bytes=0, shrinker_enabled=False
    ) as store:

        def use(seed: int) -> None:
            for _ in range(20):
                with pytest.raises(StoreRejected):
                    store.store(seed, noise(seed))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(8)))
        assert store._resources.current_turn() is None
        assert not store._resources.turns


@pytest.mark.parametrize("call", ["compact", "writeback"])
def test_an_error_that_is_kept_does_not_keep_others_from_cleaning(
    engine: Engine, call: str
) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        fill(store)
        thin(store, 10)
        store.store(PAGES, noise(PAGES))
        file.faults["pwrite"] = (errno.EIO, 100)
        with pytest.raises(OSError, match="error") as kept:
            store.compact() if call == "compact" else store.writeback(1)
        file.faults.clear()
        with ThreadPoolExecutor(1) as other:
            other.submit(store.compact).result()
        assert store.counters.backing_file_size < PAGES * SIZE // 5
        assert kept.value.errno == errno.EIO


@pytest.mark.parametrize("limit", [ZONE, 0])
def test_a_file_is_cleaned_when_its_limit_was_lowered_below_what_it_holds(
    engine: Engine, tmp_path: Path, limit: int
) -> None:
    with SwapStore(engine, backing=tmp_path) as store:
        fill(store)
        left = thin(store, 10)
        store.max_backing_bytes = limit
        store.compact()
        assert store.counters.backing_file_size == len(left) * SIZE < ZONE
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        store.check_invariants()


def test_writeback_makes_room_in_a_file_at_its_limit(engine: Engine, tmp_path: Path) -> None:
    limit = 2 * ZONE
    with SwapStore(engine, backing=tmp_path, max_backing_bytes=limit) as store:
        fill(store, limit * 3 // 4 // SIZE)
        left = thin(store, 3, limit * 3 // 4 // SIZE)
        store.store(10_000, [noise(seed) for seed in range(200)])
        assert store.writeback(range(10_000, 10_200)) == 200
        assert store.counters.backing_file_size <= limit
        assert store.load_many(left).tobytes() == b"".join(map(noise, left))
        assert store.load(10_199) == noise(199)
        store.check_invariants()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [1000, pytest.param(6000, marks=pytest.mark.stress)])
def test_pages_change_while_they_are_moved(engine: Engine, tmp_path: Path, changes: int) -> None:
    """What is stored anew or invalidated meanwhile is what is there afterwards."""
    with SwapStore(engine, backing=tmp_path, max_pool_bytes=64 * SIZE, max_batch=16) as store:
        newest: dict[int, bytes] = {}
        stop = threading.Event()

        def clean() -> None:
            while not stop.is_set():
                store.compact()

        cleaners = [threading.Thread(target=clean) for _ in range(2)]
        for cleaner in cleaners:
            cleaner.start()
        rng = random.Random(1)
        try:
            for turn in range(changes):
                index = rng.randrange(1500)
                if rng.random() < 0.6:
                    newest[index] = rng.choice([noise, text])(turn)
                    store.store(index, newest[index])
                elif rng.random() < 0.5:
                    store.invalidate(index)
                    newest.pop(index, None)
                elif index in newest:
                    assert store.load(index) == newest[index]
        finally:
            stop.set()
            for cleaner in cleaners:
                cleaner.join()
        assert store.load_many(list(newest)).tobytes() == b"".join(newest.values())
        store.check_invariants()
        assert store.check().ok
