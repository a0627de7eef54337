"""Writeback: cold pages go to the file, come back as they were, and newer ones always win."""

import errno
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.entries import flip
from support.faulty_file import FaultyFile
from support.store_pages import PAGES, SIZE, noise, text, word

from batchzip import (
    BadArgument,
    Engine,
    SwapStore,
)


def test_zswap_selftest_pages_read_right_whether_written_back_or_not(
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


@pytest.mark.parametrize("damaged", [[], [1], [0, 3, 4]])
def test_damaged_pages_are_counted_and_left(store: SwapStore, damaged: list[int]) -> None:
    store.store(0, [text(number) for number in range(5)])
    for index in damaged:
        flip(store, index)
    try:
        assert store.writeback(range(5)) == 5 - len(damaged)
        counters = store.counters
        assert counters.written_back_pages == counters.backed_pages == 5 - len(damaged)
        assert counters.decompress_fail == counters.reject_reclaim_fail == len(damaged)
    finally:
        for index in damaged:
            flip(store, index)
    assert store.load_many(range(5)).tobytes() == b"".join(map(text, range(5)))


def test_pages_that_a_file_does_not_take_are_counted(engine: Engine) -> None:
    file = FaultyFile()
    with SwapStore(engine, backing=file) as store:
        store.store(0, [text(number) for number in range(5)])
        file.faults["pwrite"] = (errno.EIO, 100)
        with pytest.raises(OSError, match="error"):
            store.writeback(range(3))
        counters = store.counters
        assert (counters.reject_reclaim_fail, counters.decompress_fail) == (3, 0)
        assert (counters.written_back_pages, counters.stored_pages) == (0, 5)


def test_writing_back_frees_the_pool(store: SwapStore) -> None:
    store.store(0, [noise(number) for number in range(300)])
    assert store.writeback(300) == 300
    assert store.compressed_bytes == 0
    assert store._resources.pool.objects == 0


@pytest.mark.slow
def test_overwritten_pages_leave_the_file_and_their_room_is_reused(store: SwapStore) -> None:
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
def test_writeback_refuses_invalid_arguments(store: SwapStore, wrong: object) -> None:
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


@pytest.mark.slow
def test_a_store_imports_nothing_while_it_works() -> None:
    """A signal handler may come into the middle of an import, where the module is not whole yet."""
    command = [sys.executable, "-c", IMPORTS]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b"[]\n"


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
