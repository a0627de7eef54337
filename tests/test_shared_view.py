"""Loads from another process's memory: whatever is in it, no wrong page and no crash."""

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import share_readers
from shared_memory import SHOWN, Bits, entry_of, memory_files
from store_pages import ZEROS, noise, text, word

from batchzip import (
    BadArgument,
    ClosedError,
    CorruptPage,
    Engine,
    PageError,
    PageNotStored,
    StoreView,
    SwapStore,
)
from batchzip.codecs import Codec
from batchzip.core.view import SharedPool, SharedTable
from batchzip.segment import Segment

SIZE = 4096

spawn = multiprocessing.get_context("spawn")


def make_pages(count: int) -> list[bytes]:
    kinds: list[Callable[[int], bytes]] = [text, noise, word, lambda _: ZEROS]
    return [kinds[number % 4](number) for number in range(count)]


@pytest.fixture(params=["lz4", "zstd", "deflate"])
def spoilt(request: pytest.FixtureRequest) -> Iterator[tuple[StoreView, list[bytes], Bits]]:
    before = memory_files()
    with Engine(request.param, backend="sequential") as engine, SwapStore(engine) as store:
        pages = make_pages(600)
        store.store(0, pages)
        store.invalidate(40, 8)
        for index in range(40, 48):
            pages[index] = b""
        with store.share().attach() as view:
            assert view.load(0) == pages[0]
            after = memory_files()
            bits = Bits({inode: fd for inode, fd in after.items() if inode not in before})
            assert len(bits.maps) >= 3  # table, words, objects
            yield view, pages, bits
            bits.close()
        assert store.check().ok
        store.check_invariants()


def load_and_compare(
    view: StoreView, pages: list[bytes], seed: int, spoilt: threading.Event
) -> int:
    """Load pages, one by one and in batches, until all is spoilt; how many were right."""
    rng = random.Random(seed)
    right = 0
    out = bytearray(SIZE)
    while not spoilt.is_set():
        index = rng.randrange(len(pages))
        try:
            if rng.random() < 0.2:
                some = [rng.randrange(len(pages)) for _ in range(4)]
                found = view.load_many(some)
                assert found.tobytes() == b"".join(pages[at] for at in some)
            else:
                data = view.load(index) if rng.random() < 0.5 else view.load(index, out)
                assert data == pages[index], f"page {index}"
            right += 1
        except (PageNotStored, CorruptPage, PageError, ClosedError):
            pass
    return right


def spoil(bits: Bits, flips: int, spoilt: threading.Event) -> None:
    """Flip bits, one at a time, and flip each back."""
    rng = random.Random(1)
    try:
        for _ in range(flips):
            chosen = bits.choose(rng)
            bits.flip(*chosen)
            time.sleep(rng.random() * 0.004)
            bits.flip(*chosen)
    finally:
        spoilt.set()


@pytest.mark.slow
def test_bits_that_flip_while_readers_load_never_give_a_wrong_page(
    spoilt: tuple[StoreView, list[bytes], Bits],
) -> None:
    view, pages, bits = spoilt
    done = threading.Event()
    with ThreadPoolExecutor(4) as executor:
        spoiling = executor.submit(spoil, bits, 500, done)
        loading = [executor.submit(load_and_compare, view, pages, seed, done) for seed in range(3)]
        assert all(one.result() > 0 for one in loading)
        spoiling.result()
    for index, page in enumerate(pages):  # nothing of it stays
        if page:
            assert view.load(index) == page


def test_each_bit_of_an_entry_and_of_a_word_counts(engine: Engine) -> None:
    """Of as many pages as there are bits, one has the first flipped, another the second, and so on."""
    before = memory_files()
    count = 112 + 64  # the last 16 of an entry say when it was used
    with SwapStore(engine) as store, store.share().attach() as view:
        store.store(0, [text(index) for index in range(count)])
        bits = Bits({inode: fd for inode, fd in memory_files().items() if inode not in before})
        slots = [view._table.get(index)[0] & (1 << 48) - 1 for index in range(count)]

        def flip_all() -> None:
            for bit in range(112):
                entry_of(store, bit)[bit // 64] ^= np.uint64(1 << bit % 64)
            for bit in range(64):
                bits.flip(bits.named("words"), 8 * slots[112 + bit] + bit // 8, bit % 8)

        def is_right(index: int) -> bool:
            try:
                assert view.load(index) == text(index)
            except (CorruptPage, PageNotStored):
                return False
            return True

        flip_all()
        with ThreadPoolExecutor(40) as executor:  # each waits a while for its owner to put it right
            right = sum(executor.map(is_right, range(count)))
        # A compressed page may be called a raw one: how it is read is told by its codec.
        assert right <= 1
        flip_all()
        assert all(map(is_right, range(count)))
        bits.close()
        assert store.check().ok


@pytest.mark.parametrize("count", [1, 512])
def test_other_processes_see_no_entry_that_nobody_wrote(engine: Engine, count: int) -> None:
    with SwapStore(engine) as store:
        ways = [[text(1)] * count, [word(2)] * count, [noise(3)] * count]
        written = {0}
        store.store(0, [text(9)] * 513)
        for pages in ways:
            store.store(0, pages)
            written.add(int(entry_of(store, 0)[1]) & SHOWN)
        here, there = spawn.Pipe()
        looker = spawn.Process(
            target=share_readers.look_at_entry, args=(os.getpid(), store._ledger.share(), there)
        )
        looker.start()
        there.close()
        assert here.recv() == "ready"
        for _ in range(300):
            for pages in ways:
                store.store(0, pages)
            store.invalidate(0)
        here.send("stop")
        seen = {word & SHOWN for word in here.recv()}
        looker.join()
        looker.close()
        here.close()
        assert {hex(word) for word in seen - written} == set()


# What the memory grows to


def grow(store: SwapStore, stored: list[int]) -> None:
    """Store pages so that table and words have to be mapped anew several times."""
    for number in range(30):
        store.store(1 << 40 | number << 12, [text(at) for at in range(512)])
        stored.append(number)
    for number in range(1500):
        store.store(number << 9, word(number))


def test_a_reader_follows_a_store_that_grows(engine: Engine) -> None:
    with SwapStore(engine) as store, store.share().attach() as view:
        stored: list[int] = []
        rng = random.Random(3)
        with ThreadPoolExecutor(1) as executor:
            growing = executor.submit(grow, store, stored)
            while not growing.done():
                if stored:
                    at = rng.randrange(512)
                    assert view.load(1 << 40 | rng.choice(stored) << 12 | at) == text(at)
            growing.result()
        assert view.load_many([number << 9 for number in range(1500)]).tobytes() == b"".join(
            map(word, range(1500))
        )
        for number in stored:
            assert view.load(1 << 40 | number << 12 | 77) == text(77)
        store.invalidate(0, 700 << 9)
        for number in range(700):
            assert number << 9 not in view
        assert 700 << 9 in view


# What is no memory of a store


def open_again(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def unsealed(size: int) -> int:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def no_codecs() -> tuple[int, dict[int, Codec]]:
    raise AssertionError


@pytest.mark.parametrize(("size", "what"), [(8, "short"), (1 << 24, "shrink")])
def test_memory_that_could_fault_is_refused(size: int, what: str) -> None:
    with pytest.raises(BadArgument, match=what):
        SharedPool(unsealed(8), unsealed(size), -1, SIZE, 0, {}, no_codecs)
    with Segment(SIZE, reserve=True) as words:
        pool = SharedPool(unsealed(8), open_again(words.fd), -1, SIZE, 0, {}, no_codecs)
        with pytest.raises(BadArgument, match=what):
            SharedTable(unsealed(size), pool, lambda _: None)
        pool.close()


@pytest.mark.parametrize("page_size", [0, 1, 500, 4095, 4 << 20])
def test_page_sizes_of_no_store_are_refused(page_size: int) -> None:
    with Segment(SIZE, reserve=True) as words, pytest.raises(BadArgument):
        SharedPool(unsealed(8), open_again(words.fd), -1, page_size, 0, {}, no_codecs)
