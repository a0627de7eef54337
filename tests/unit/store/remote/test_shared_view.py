"""Loads from another process's memory: whatever is in it, no wrong page and no crash."""

import errno
import fcntl
import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from support.entries import DIRECTORY, ENTRIES
from support.shared_memory import Bits, memory_files, pages_with_memory
from support.store_pages import ZEROS, noise, text, word

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
from batchzip.system.segment import Segment
from batchzip_workers.backend import WorkersBackend

SIZE = 4096


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


@pytest.mark.slow
def test_each_bit_of_an_entry_and_of_a_word_counts(
    spoilt: tuple[StoreView, list[bytes], Bits],
) -> None:
    """Flip another bit of each page: the first bit of one, the second of another, and so on."""
    view, pages, bits = spoilt
    table, words = bits.named("table"), bits.named("words")
    chosen: list[tuple[memoryview, int, int]] = []
    compressed = [index for index, page in enumerate(pages) if page and index % 4 == 0]
    places = struct.unpack_from("<8q", table, DIRECTORY)
    for bit, index in enumerate(compressed[:112]):  # the last 16 say when it was used
        at = ENTRIES + 16 * (places.index(index >> 9) << 9 | index & 511)
        assert struct.unpack_from("<QQ", table, at) == view._table.get(index)
        chosen.append((table, at + bit // 8, bit % 8))
    for bit, index in enumerate(compressed[40:104]):
        slot = view._table.get(index)[0] & (1 << 48) - 1
        chosen.append((words, 8 * slot + bit // 8, bit % 8))
    for one in chosen:
        bits.flip(*one)

    def look(index: int) -> bool:
        try:
            assert view.load(index) == pages[index]
        except (CorruptPage, PageNotStored):
            return False
        return True

    with ThreadPoolExecutor(40) as executor:  # each waits a while for its owner to put it right
        right = sum(executor.map(look, compressed[:112]))
    # A raw page may be said to be compressed: what tells how to read it is the codec.
    assert right <= 2
    assert view.load(1) == pages[1]
    for one in chosen:
        bits.flip(*one)


class Copy:
    """A store's memory, copied, and a view of that: nobody puts right what is written there."""

    def __init__(self, view: StoreView, store: SwapStore) -> None:
        given = *store._resources.descriptors(), store._share_table()
        self.fds = [self._copied(fd) for fd in given]
        for fd in given:
            os.close(fd)
        self.maps = [mmap.mmap(fd, os.fstat(fd).st_size) for fd in self.fds]
        owner = view._shared.owner
        data, words = map(os.dup, self.fds[:2])
        codecs = owner.codecs()
        self.pool = SharedPool(data, words, -1, SIZE, *codecs, lambda: codecs)
        self.table = self.another_table()
        self.table.get(0)  # it knows the directory as it is

    def another_table(self) -> SharedTable:
        return SharedTable(os.dup(self.fds[2]), self.pool, lambda _: None)

    def _copied(self, fd: int) -> int:
        copy = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(copy, os.fstat(fd).st_size)
        for at in pages_with_memory(fd, os.fstat(fd).st_size):
            os.pwrite(copy, os.pread(fd, mmap.PAGESIZE, at), at)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return copy

    def overwrite(self, rng: random.Random) -> Callable[[], None]:
        """Write over a few words of what is used, with anything. Return what puts them back."""
        undo: list[tuple[mmap.mmap, int, bytes]] = []
        for _ in range(rng.choice((1, 1, 4, 64))):
            fd, memory = rng.choice(list(zip(self.fds, self.maps, strict=True)))
            page = rng.choice(pages_with_memory(fd, os.fstat(fd).st_size))
            at = page + 8 * rng.randrange(rng.choice((4, 16, 512)))
            undo.append((memory, at, memory[at : at + 8]))
            odd = (rng.randbytes(8), bytes(8), b"\xff" * 8, b"\0" * 6 + rng.randbytes(2))
            memory[at : at + 8] = rng.choice(odd)

        def put_back() -> None:
            for memory, at, before in reversed(undo):
                memory[at : at + 8] = before

        return put_back

    def close(self) -> None:
        self.table.close()
        self.pool.close()
        for memory, fd in zip(self.maps, self.fds, strict=True):
            memory.close()
            os.close(fd)


@pytest.mark.slow
def test_words_that_are_overwritten_with_anything_never_give_a_wrong_page(engine: Engine) -> None:
    rng = random.Random(2)
    places = [*range(200), *range(5 << 9, (5 << 9) + 100)]
    pages = dict(zip(places, make_pages(300), strict=True))
    with SwapStore(engine) as store, store.share().attach() as view:
        for first, count in ((0, 200), (5 << 9, 100)):
            store.store(first, [pages[index] for index in range(first, first + count)])
        copy = Copy(view, store)

    def look(table: SharedTable, index: int) -> bool:
        try:
            assert table.load(index) == pages[index]
        except (PageNotStored, CorruptPage, PageError, ClosedError):
            return False
        return True

    right = 0
    with ThreadPoolExecutor(80) as executor:  # each waits a while for its owner to put it right
        for _ in range(6):
            put_back = copy.overwrite(rng)
            for table in (copy.table, copy.another_table()):  # the other has looked at nothing yet
                some = [*rng.sample(places, 70), *range(200, 210)]
                right += sum(executor.map(partial(look, table), some))
            put_back()
            assert all(executor.map(partial(look, copy.table), places))
    assert 100 < right < 6 * 2 * 70
    copy.close()


# What the memory grows to


def grow(store: SwapStore, stored: list[int]) -> None:
    """Store pages so that table and words have to be mapped anew several times."""
    for number in range(30):
        store.store(1 << 40 | number << 12, [text(at) for at in range(512)])
        stored.append(number)
    for number in range(1500):
        store.store(number << 9, word(number))


@pytest.mark.slow
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


# Who can write


def is_refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES, errno.EBADF)
    return False


def is_sealed(fd: int) -> bool:
    """Whether nobody can write who opens it anew by /proc, as any process of the user may."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return is_refused(lambda: os.pwrite(again, b"x", 0)) and is_refused(
            lambda: mmap.mmap(again, 4096)
        )
    finally:
        os.close(again)


def test_tables_and_words_are_written_by_their_owner_only(store: SwapStore) -> None:
    store.store(0, text(0))
    objects, words = store._resources.pool.descriptors
    given = store._resources.descriptors()
    table = store._share_table()
    for fd in (*given, table):
        assert is_refused(lambda fd=fd: os.pwrite(fd, b"x", 0))  # type: ignore[misc]
        assert is_refused(lambda fd=fd: mmap.mmap(fd, 4096))  # type: ignore[misc]
        os.close(fd)
    assert is_sealed(words)
    assert is_sealed(store._entries.share())
    assert not is_sealed(objects), "it gives memory back"
    for number in range(200):  # they grow and move all the same
        store.store(number << 9, [text(at) for at in range(64)])
    assert store.load(150 << 9 | 63) == text(63)
    store.check_invariants()


@pytest.mark.slow
def test_a_ring_is_written_by_its_worker_and_its_owner_only() -> None:
    with Engine("lz4", backend="workers", workers=1) as engine:
        assert engine.wait_ready(60)
        backend = engine.backend
        assert isinstance(backend, WorkersBackend)
        ring = backend._supervisor._workers[0].ring
        assert ring is not None
        assert is_sealed(ring.descriptors[0])


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
