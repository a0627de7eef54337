"""Writeback: cold pages go to the file, come back as they were, and newer ones always win."""

import errno
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.entries import in_file
from support.store_pages import SIZE, ZEROS, grown, noise, text, word

from batchzip import (
    BadArgument,
    CorruptPage,
    Engine,
    PageError,
    PageNotStored,
    StoreRejected,
    SwapStore,
)


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SwapStore]:
    with SwapStore(engine, backing=tmp_path) as made:
        yield made
        if not made.closed:
            made.check_invariants()
            assert made.check().ok


PAGES = [text(0), noise(1), word(2), text(3), ZEROS, noise(5), text(6), text(7)]


def test_zswap_selftest_what_is_written_back_reads_right_and_so_does_what_is_not(
    store: SwapStore,
) -> None:
    store.store(0, PAGES)
    assert store.writeback([0, 1, 3]) == 3
    assert [bytes(store.load(index)) for index in range(len(PAGES))] == PAGES
    assert store.load_many(range(len(PAGES))).tobytes() == b"".join(PAGES)
    counters = store.counters
    assert counters.written_back_pages == counters.backed_pages == 3
    assert counters.stored_pages == 5
    assert len(store) == 8
    assert counters.backing_file_size > 0


def test_pages_kept_as_a_word_stay_and_absent_ones_are_passed_over(store: SwapStore) -> None:
    store.store(0, PAGES)
    assert store.writeback([2, 4, 100, 0, 0, 0]) == 1
    assert store.writeback([0]) == 0


def test_the_coldest_go_first(store: SwapStore) -> None:
    for index in range(10):
        store.store(index, text(index))
    store.load(0)
    store.load_many([2, 3])
    assert store.writeback(4) == 4
    before = store.counters
    assert before.backed_pages == 4
    store.invalidate(1)
    store.invalidate(4, 3)
    assert store.counters.backed_pages == 0
    assert store.writeback(100) == 6
    assert store.counters.stored_pages == 0


def test_writing_back_frees_the_pool(store: SwapStore) -> None:
    store.store(0, [noise(number) for number in range(300)])
    assert store.writeback(300) == 300
    assert store.compressed_bytes == 0
    assert store._resources.pool.objects == 0


def test_what_is_stored_again_leaves_the_file_and_its_place_is_used_again(store: SwapStore) -> None:
    for round_ in range(30):
        store.store(0, [noise(1000 * round_ + number) for number in range(300)])
        assert store.writeback(300) == 300
    assert store.load(299) == noise(29_299)
    assert store.counters.backing_file_size <= 4 * 300 * SIZE
    store.invalidate(0, 300)
    assert store.counters.backed_pages == 0
    assert len(store) == 0


def test_without_a_backing_file_there_is_no_writeback(engine: Engine) -> None:
    with SwapStore(engine) as store:
        with pytest.raises(BadArgument, match="backing="):
            store.writeback(1)
        with pytest.raises(BadArgument, match="backing="):
            store.shrink()


@pytest.mark.parametrize("wrong", [-1, [1.5], "abc", [[1]]])
def test_what_cannot_be_written_back_is_refused(store: SwapStore, wrong: object) -> None:
    with pytest.raises(BadArgument):
        store.writeback(wrong)  # type: ignore[arg-type]


IMPORTS = """
import os, sys, tempfile
import batchzip
engine = batchzip.Engine("lz4", backend="sequential")
store = batchzip.SwapStore(engine, backing=tempfile.gettempdir())
before = set(sys.modules)
store.store(0, [os.urandom(64) * 64 for _ in range(64)])
store.load_many([1, 2])
assert store.writeback([3, 1, 1, 2]) == 3 and store.writeback(9) == 9
store.load(1)
store.load_many([2, 3], exclusive=True)
store.shrink(), store.compact(), store.check(), store.status(), store.counters
store.recompress(engine)
store.invalidate(0, 9)
store.close()
print(sorted(set(sys.modules) - before))
"""


def test_a_store_imports_nothing_while_it_works() -> None:
    """A signal handler may come into the middle of an import, where the module is not whole yet."""
    command = [sys.executable, "-c", IMPORTS]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b"[]\n"


# A full pool


def test_while_a_folio_goes_to_the_file_its_indices_hold_what_they_held(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate, shrinker_enabled=False) as store:
        store.store(0, [text(0), text(1)])
        store.max_pool_bytes = store.counters.pool_total_size + 1  # not full, but nearly
        seen: list[bytes] = []
        gate.fail = lambda _call: seen.append(store.load(0) + store.load(1))
        store.store(0, [noise(number) for number in range(80)])
        assert seen == [text(0) + text(1)] * 2  # at the write and at the sync
        gate.fail = lambda _call: None
        assert store.counters.backed_pages == 80
        assert store.load_many([0, 1, 79]).tobytes() == noise(0) + noise(1) + noise(79)
        store.check_invariants()


def test_a_folio_that_the_pool_rejects_goes_to_the_file(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(
        engine, max_pool_bytes=16 * SIZE, backing=tmp_path, shrinker_enabled=False
    ) as store:
        pages = [noise(number) for number in range(40)]
        for start in range(0, 40, 4):
            store.store(start, pages[start : start + 4])
        store.store(40, [text(40), ZEROS])
        counters = store.counters
        assert counters.pool_limit_hit > 0
        assert counters.written_back_pages == 0
        assert counters.backed_pages >= 24
        assert counters.pool_total_size <= 16 * SIZE
        assert store.load_many(range(42)).tobytes() == b"".join([*pages, text(40), ZEROS])
        store.check_invariants()


def test_pages_no_codec_takes_go_to_the_file_as_they_are(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, keep_incompressible=False) as store:
        before = store.counters
        store.store(0, [text(0), noise(1), ZEROS])
        assert store.load_many(range(3)).tobytes() == text(0) + noise(1) + ZEROS
        assert store.counters.backed_pages == 2
        assert grown(store, before) == {"reject_compress_poor": 1}


def test_the_shrinker_makes_room_down_to_the_threshold(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, max_pool_bytes=64 * SIZE, backing=tmp_path) as store:
        for index in range(400):
            store.store(index, noise(index))
        # A store that finds the pool at its limit wakes the shrinker, as in zswap.
        store.max_pool_bytes = 32 * SIZE
        store.store(400, noise(400))
        deadline = time.monotonic() + 30
        while store.counters.pool_total_size > 0.9 * 32 * SIZE and time.monotonic() < deadline:
            time.sleep(0.01)
        counters = store.counters
        assert counters.pool_total_size <= 0.9 * 32 * SIZE
        assert counters.written_back_pages > 0
        assert [bytes(store.load(index)) for index in range(401)] == [noise(n) for n in range(401)]
        store.check_invariants()
    assert not [thread for thread in threading.enumerate() if "shrinker" in thread.name]


def test_a_store_that_is_dropped_ends_its_shrinker(engine: Engine, tmp_path: Path) -> None:
    store = SwapStore(engine, max_pool_bytes=16 * SIZE, backing=tmp_path)
    for index in range(40):
        store.store(index, noise(index))
    del store
    deadline = time.monotonic() + 30
    while [thread for thread in threading.enumerate() if "shrinker" in thread.name]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shrinking_by_hand(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, shrinker_enabled=False) as store:
        store.store(0, [noise(number) for number in range(100)])
        assert store.shrink() == 0
        store.max_pool_bytes = 50 * SIZE
        assert store.shrink() >= 55
        assert store.counters.pool_total_size <= 45 * SIZE
        store.store(100, noise(100))
        assert store.counters.backed_pages == store.counters.written_back_pages
        assert store.load_many(range(101)).tobytes() == b"".join(map(noise, range(101)))


def test_cve_2023_53178_no_writeback_brings_an_older_page_back(
    engine: Engine, tmp_path: Path
) -> None:
    rng = random.Random(4)
    newest: dict[int, bytes] = {}
    with SwapStore(engine, backing=tmp_path) as store:
        for turn in range(600):
            store.max_pool_bytes = rng.choice([20, 1]) * SIZE
            index = rng.randrange(30)
            newest[index] = rng.choice([noise, text])(turn)
            store.store(index, newest[index])
            if turn % 10 == 0:
                assert {at: bytes(store.load(at)) for at in newest} == newest
        assert store.load_many(list(newest)).tobytes() == b"".join(newest.values())
        store.check_invariants()


class Gate:
    """A file object in memory, which holds writes until it is told to let them through."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.writing = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.fail: Callable[[str], None] = lambda _call: None

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        self.fail("write")
        self.writing.set()
        self.open.wait()
        end = offset + len(data)
        self.memory.extend(bytes(max(0, end - len(self.memory))))
        self.memory[offset:end] = data
        return len(data)

    def pread(self, length: int, offset: int) -> bytes:
        self.fail("read")
        return bytes(self.memory[offset : offset + length])

    def sync(self) -> None:
        self.fail("sync")


@pytest.mark.parametrize("meanwhile", ["store", "invalidate", "exclusive", "load"])
def test_what_happens_during_a_writeback_is_not_undone_by_it(
    engine: Engine, meanwhile: str
) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        gate.open.clear()
        writer = threading.Thread(target=store.writeback, args=([0, 1],))
        writer.start()
        assert gate.writing.wait(30)
        if meanwhile == "store":
            store.store(0, text(9))
        elif meanwhile == "invalidate":
            store.invalidate(0)
        elif meanwhile == "exclusive":
            assert store.load(0, exclusive=True) == text(0)
        else:
            assert store.load(0) == text(0)
        gate.open.set()
        writer.join()
        store.check_invariants()
        if meanwhile == "store":
            assert store.load(0) == text(9)
        elif meanwhile == "load":
            assert store.load(0) == text(0)
        else:
            assert 0 not in store
        assert store.load(1) == text(1)
        assert store.counters.written_back_pages == (2 if meanwhile == "load" else 1)


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_writeback_that_fails_leaves_every_page_in_memory(
    engine: Engine, call: str, code: int
) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, PAGES)

        def fail(now: str) -> None:
            if now == call:
                raise OSError(code, "injected")

        gate.fail = fail
        before = store.counters
        with pytest.raises(OSError, match="injected"):
            store.writeback(len(PAGES))
        assert grown(store, before) == {"reject_reclaim_fail": 6}
        assert store.load_many(range(len(PAGES))).tobytes() == b"".join(PAGES)
        store.check_invariants()
        gate.fail = lambda _call: None
        assert store.writeback(range(len(PAGES))) == 6
        assert store.load_many(range(len(PAGES))).tobytes() == b"".join(PAGES)
        store.check_invariants()


def test_a_folio_that_neither_takes_is_rejected_and_its_indices_hold_nothing(
    engine: Engine,
) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate, max_pool_bytes=0, shrinker_enabled=False) as store:
        store.store(0, [text(0), text(1)])
        assert store.load(1) == text(1)

        def fail(now: str) -> None:
            raise OSError(errno.ENOSPC, now)

        gate.fail = fail
        before = store.counters
        with pytest.raises(StoreRejected, match="backing file"):
            store.store(1, [text(2), text(3)])
        assert grown(store, before) == {"pool_limit_hit": 1, "reject_reclaim_fail": 1}
        gate.fail = lambda _call: None
        assert store.load(0) == text(0)
        assert 1 not in store
        assert 2 not in store
        store.check_invariants()


def test_a_page_that_cannot_be_read_is_an_error_and_stays(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        store.writeback(2)

        def fail(now: str) -> None:
            if now == "read":
                raise OSError(errno.EIO, "injected")

        gate.fail = fail
        for call in (lambda: store.load(1), lambda: store.load_many([1])):
            with pytest.raises(PageError) as error:
                call()
            assert (error.value.index, error.value.errno) == (1, -errno.EIO)
        assert store.counters.decompress_fail == 2
        report = store.check()
        assert report.unreadable == (("", 0), ("", 1))
        assert not report.ok
        gate.fail = lambda _call: None
        assert store.load_many([1, 0]).tobytes() == text(1) + text(0)
        assert store.check().ok


def test_damage_in_the_file_is_told_by_page(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(number) for number in range(8)])
        store.writeback(8)
        gate.memory[in_file(store, 3)[0]] ^= 1
        with pytest.raises(CorruptPage, match="3"):
            store.load(3)
        with pytest.raises(CorruptPage, match="3"):
            store.load_many(range(8))
        assert store.check().damaged == (("", 3),)
        assert [store.load(index) for index in (0, 1, 2, 4, 5, 6, 7)] == [
            text(number) for number in (0, 1, 2, 4, 5, 6, 7)
        ]


def test_the_files_limit_can_be_moved(engine: Engine, tmp_path: Path) -> None:
    with SwapStore(engine, backing=tmp_path, max_backing_bytes=10 * SIZE) as store:
        store.store(0, [noise(number) for number in range(40)])
        assert store.max_backing_bytes == 10 * SIZE
        assert store.writeback(range(8)) == 8  # an eighth is kept for cleaning
        with pytest.raises(OSError, match=f"limit of {10 * SIZE} bytes"):
            store.writeback([8])
        store.max_backing_bytes = 30 * SIZE
        assert store.writeback(range(26)) == 18
        store.max_backing_bytes = 0
        with pytest.raises(OSError, match="limit of 0 bytes"):
            store.writeback([30])
        assert store.load_many(range(40)).tobytes() == b"".join(map(noise, range(40)))
        for wrong in (-1, True, "1", 0.5):
            with pytest.raises(BadArgument, match="max_backing_bytes is a number of bytes"):
                store.max_backing_bytes = wrong  # type: ignore[assignment]
        store.max_backing_bytes = None
        assert store.writeback(range(40)) == 14
    with SwapStore(engine) as store:
        assert store.max_backing_bytes is None
        with pytest.raises(BadArgument, match="backing="):
            store.max_backing_bytes = 5


# Exclusive loads


def test_an_exclusive_load_takes_the_page_out_wherever_it_is(store: SwapStore) -> None:
    store.store(0, PAGES)
    store.writeback([0, 1])
    for index, page in enumerate(PAGES):
        assert store.load(index, exclusive=True) == page
        assert index not in store
        with pytest.raises(PageNotStored):
            store.load(index, exclusive=True)
    assert store.compressed_bytes == 0


def test_an_exclusive_load_of_many_takes_all_or_none(store: SwapStore) -> None:
    store.store(0, PAGES)
    store.writeback([0, 6])
    with pytest.raises(PageNotStored):
        store.load_many([1, 2, 99], exclusive=True)
    assert len(store) == len(PAGES)
    taken = store.load_many([6, 1, 2, 1], exclusive=True)
    assert taken.tobytes() == PAGES[6] + PAGES[1] + PAGES[2] + PAGES[1]
    assert [index for index in range(len(PAGES)) if index in store] == [0, 3, 4, 5, 7]


def test_25cd241408a2_a_page_that_cannot_be_restored_is_not_dropped(engine: Engine) -> None:
    gate = Gate()
    with SwapStore(engine, backing=gate) as store:
        store.store(0, [text(0), text(1)])
        store.writeback(2)
        gate.memory[in_file(store, 0)[0]] ^= 1
        with pytest.raises(CorruptPage):
            store.load(0, exclusive=True)
        with pytest.raises(CorruptPage):
            store.load_many([1, 0], exclusive=True)
        assert 0 in store
        assert 1 in store


def test_of_many_that_take_a_page_one_gets_it(engine: Engine) -> None:
    rounds, takers = 200, 4
    with SwapStore(engine) as store:
        taken: list[int] = []

        def take() -> None:
            for index in range(rounds):
                try:
                    page = store.load(index, exclusive=True)
                except PageNotStored:
                    continue
                assert page == text(index)
                taken.append(index)

        store.store(0, [text(number) for number in range(rounds)])
        threads = [threading.Thread(target=take) for _ in range(takers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == list(range(rounds))
        assert len(store) == 0


# Races


class User:
    """Does anything to indices of its own, in a seeded order, and knows what must be there."""

    def __init__(self, store: SwapStore, number: int, seed: int) -> None:
        self.store = store
        self.first = 30 * number  # a folio reaches beyond the twenty it uses
        self.rng = random.Random(seed * 100 + number)
        self.newest: dict[int, bytes] = {}
        self.failures: list[str] = []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            for turn in range(300):
                index = self.first + self.rng.randrange(20)
                what = self.rng.random()
                if what < 0.5:
                    self.put(index, turn)
                elif what < 0.6:
                    self.store.invalidate(index)
                    self.newest.pop(index, None)
                elif index in self.newest:
                    self.get(index, exclusive=what > 0.9)
                elif index in self.store:
                    self.failures.append(f"page {index} is there in turn {turn}")
            if self.newest:
                loaded = self.store.load_many(list(self.newest))
                if loaded.tobytes() != b"".join(self.newest.values()):
                    self.failures.append("the last look differs")
        except Exception as error:  # noqa: BLE001 - told by the test
            self.failures.append(repr(error))

    def put(self, index: int, turn: int) -> None:
        makes = [self.rng.choice([text, noise, word]) for _ in range(self.rng.randrange(1, 5))]
        pages = [make(turn + number) for number, make in enumerate(makes)]
        self.store.store(index, pages)
        self.newest.update(zip(range(index, index + len(pages)), pages, strict=True))
        for at in [at for at in self.newest if at >= self.first + 20]:
            self.store.invalidate(at)
            del self.newest[at]

    def get(self, index: int, *, exclusive: bool) -> None:
        if self.store.load(index, exclusive=exclusive) != self.newest[index]:
            self.failures.append(f"page {index} is wrong")
        if exclusive:
            del self.newest[index]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_threads_that_do_everything_at_once_see_what_a_dict_would_give(
    engine: Engine, tmp_path: Path, seed: int
) -> None:
    """Each has indices of its own; all share pool, file, and a limit that swings up and down."""
    with SwapStore(engine, backing=tmp_path, max_pool_bytes=40 * SIZE) as store:
        users = [User(store, number, seed) for number in range(4)]
        for user in users:
            user.thread.start()
        rng = random.Random(seed)
        while any(user.thread.is_alive() for user in users):
            store.max_pool_bytes = rng.choice([4, 20, 80]) * SIZE
            store.writeback(rng.randrange(5))
            store.compact()
            store.writeback(rng.sample(range(120), 5))
            if rng.random() < 0.1:
                store.recompress("zstd", level=5)
        assert [user.failures for user in users] == [[]] * 4
        store._shrinker.close(wait=True)
        store.check_invariants()
        assert store.check().ok


def test_load_many_reads_much_from_the_file_at_once(store: SwapStore) -> None:
    count = 2000
    pages = [text(number) if number % 3 else noise(number) for number in range(count)]
    store.store(0, pages)
    rng = np.random.default_rng(1)
    assert store.writeback(rng.permutation(count)[: count // 2]) == count // 2
    order = rng.permutation(count)
    assert store.load_many(order).tobytes() == b"".join(pages[at] for at in order)
