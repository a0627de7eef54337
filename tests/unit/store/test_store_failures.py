"""Codecs and backends that fail, and interrupts: a folio is stored whole, or nothing of it is."""

import dataclasses
import errno
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support.interrupt_lines import interrupted_at
from support.store_pages import SIZE, ZEROS, assert_nothing_is_stored, grown, noise, text, word

from batchzip import (
    Backend,
    BatchzipError,
    Codec,
    CorruptPage,
    Engine,
    StoreRejected,
    SwapStore,
)
from batchzip.batch import Batch


@dataclasses.dataclass(frozen=True, slots=True)
class MarkedCodec(Codec):
    """zlib, save for pages whose first bytes say what shall become of them."""

    name: ClassVar[str] = "marked"

    def compressor(self, page_size: int) -> Callable[[Any], bytes]:
        def compress(page: Any) -> bytes:
            mark = bytes(page[:8])
            if mark == b"FAILS!!!":
                raise RuntimeError("this page cannot be compressed")
            if mark == b"NOMEMORY":
                raise MemoryError
            if mark == b"TOOLARGE":
                return bytes(2 * page_size + 1)
            if mark == b"NOTHING!":
                return b""
            if mark == b"NOGAIN!!":
                return bytes(page_size)
            return zlib.compress(page, 1)

        return compress

    def decompressor(self, page_size: int) -> Callable[[Any], bytes]:
        def decompress(stored: Any) -> bytes:
            page = zlib.decompress(stored)
            mark = page[:8]
            if mark == b"UNREADAB":
                raise RuntimeError("this page cannot be decompressed")
            return page[: page_size // 2] if mark == b"SHORT!!!" else page

        return decompress


def marked(mark: bytes, seed: int = 0) -> bytes:
    return mark + text(seed)[len(mark) :]


FAILS, NO_MEMORY, TOO_LARGE, NO_GAIN, NO_OUTPUT = (
    marked(mark) for mark in (b"FAILS!!!", b"NOMEMORY", b"TOOLARGE", b"NOGAIN!!", b"NOTHING!")
)


@pytest.fixture
def marking() -> Iterator[Engine]:
    with Engine(MarkedCodec(), backend="sequential") as made:
        yield made


@pytest.mark.parametrize("max_batch", [1, 2, 256])
@pytest.mark.parametrize(
    ("bad", "code"),
    [(FAILS, -errno.EIO), (NO_MEMORY, -errno.ENOMEM), (NO_OUTPUT, -errno.EIO)],
    ids=["fails", "no memory", "no output"],
)
def test_a_page_that_cannot_be_compressed_rejects_its_whole_folio(
    marking: Engine, bad: bytes, code: int, max_batch: int
) -> None:
    with SwapStore(marking, max_batch=max_batch) as store:
        store.store(1, [text(1), ZEROS, noise(3)])
        before = store.counters
        with pytest.raises(StoreRejected, match="1 of 5 pages") as rejection:
            store.store(0, [text(9), text(8), ZEROS, bad, text(7)])
        assert rejection.value.reason == "reject_compress_fail"
        assert rejection.value.errors == [0, 0, 0, code, 0]
        assert grown(store, before) == {"reject_compress_fail": 1}
        assert_nothing_is_stored(store)


def test_every_page_that_fails_is_counted_and_named(marking: Engine) -> None:
    with SwapStore(marking) as store:
        before = store.counters
        with pytest.raises(StoreRejected, match="4 of 7 pages") as rejection:
            store.store(0, [FAILS, text(1), FAILS, ZEROS, NO_MEMORY, TOO_LARGE, FAILS])
        assert rejection.value.reason == "reject_compress_fail"
        assert rejection.value.errors == [
            -errno.EIO,
            0,
            -errno.EIO,
            0,
            -errno.ENOMEM,
            0,
            -errno.EIO,
        ]
        assert grown(store, before) == {"reject_compress_fail": 4}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("page", [TOO_LARGE, NO_GAIN], ids=["too large", "no gain"])
def test_a_page_that_does_not_shrink_is_kept_raw(marking: Engine, page: bytes) -> None:
    with SwapStore(marking) as store:
        store.store(0, [text(1), page, ZEROS])
        assert store.load(1) == page
        assert store.load_many([1, 0]).tobytes() == page + text(1)
        assert store.counters.stored_incompressible_pages == 1
        store.check_invariants()


def test_pages_that_do_not_shrink_reject_their_folio_where_raw_ones_are_not_wanted(
    marking: Engine,
) -> None:
    with SwapStore(marking, keep_incompressible=False) as store:
        store.store(0, [text(1), ZEROS])
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [text(1), TOO_LARGE, ZEROS, NO_GAIN])
        assert rejection.value.reason == "reject_compress_poor"
        assert rejection.value.errors == [
            0,
            -errno.ENOSPC,
            0,
            -errno.ENOSPC,
        ]
        assert grown(store, before) == {"reject_compress_poor": 2}
        assert_nothing_is_stored(store)


def test_poor_and_failed_pages_of_one_folio_are_counted_apart(marking: Engine) -> None:
    with SwapStore(marking, keep_incompressible=False) as store:
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [FAILS, NO_GAIN, TOO_LARGE, text(1), NO_MEMORY, FAILS])
        assert rejection.value.reason == "reject_compress_fail"
        assert grown(store, before) == {"reject_compress_poor": 2, "reject_compress_fail": 3}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_noise_is_poor_whatever_the_codec(algorithm: str) -> None:
    with (
        Engine(algorithm, backend="sequential") as engine,
        SwapStore(engine, keep_incompressible=False) as store,
    ):
        before = store.counters
        with pytest.raises(StoreRejected, match="reject_compress_poor"):
            store.store(0, [text(1), noise(1), noise(2)])
        assert grown(store, before) == {"reject_compress_poor": 2}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("mark", [b"UNREADAB", b"SHORT!!!"], ids=["an error", "a wrong length"])
def test_a_page_that_cannot_be_decompressed_hurts_itself_only_and_is_kept(
    marking: Engine, mark: bytes
) -> None:
    with SwapStore(marking) as store:
        store.store(0, [text(0), marked(mark), noise(2)])
        before = store.counters
        with pytest.raises(CorruptPage) as damage:
            store.load(1)
        assert damage.value.index == 1
        with pytest.raises(CorruptPage) as damage:
            store.load_many([2, 0, 1])
        assert damage.value.index == 1
        assert grown(store, before) == {"decompress_fail": 2}
        assert store.load_many([0, 2]).tobytes() == text(0) + noise(2)
        assert 1 in store


def test_the_sum_of_what_is_in_the_pool_is_exact(marking: Engine) -> None:
    with SwapStore(marking) as store:
        pages = [text(number) for number in range(5)]
        store.store(0, [*pages, noise(1), ZEROS])
        assert store.compressed_bytes == SIZE + sum(len(zlib.compress(page, 1)) for page in pages)


# Backends that fail


class FailingBackend(Backend):
    """Does `good` batches as it should, and then whatever `trouble` does."""

    name = "failing"
    batch_size = 8

    def __init__(self, good: int, trouble: Callable[[Batch], None]) -> None:
        self.good = good
        self.trouble = trouble
        self.taken = 0

    def run(self, batch: Batch) -> None:
        self.taken += 1
        self.run_inline(batch)
        if self.taken == self.good + 1:
            self.trouble(batch)


def raising(error: BaseException) -> Callable[[Batch], None]:
    def trouble(_batch: Batch) -> None:
        raise error

    return trouble


@pytest.mark.parametrize("code", [-errno.EOWNERDEAD, -errno.ECANCELED, -errno.ETIMEDOUT])
def test_pages_that_a_backend_gives_up_reject_their_folio(code: int) -> None:
    backend = FailingBackend(1, lambda batch: batch.fail([1, 3], code))
    with Engine("lz4", backend=backend) as engine, SwapStore(engine, max_batch=4) as store:
        store.store(5, text(1))  # no batch of the backend
        before = store.counters
        with pytest.raises(StoreRejected) as rejection:
            store.store(0, [text(number) for number in range(12)])
        assert rejection.value.reason == "reject_compress_fail"
        assert np.flatnonzero(rejection.value.errors or ()).tolist() == [5, 7]
        assert grown(store, before) == {"reject_compress_fail": 2}
        assert_nothing_is_stored(store)


@pytest.mark.parametrize("good", range(4))
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), RuntimeError("the device is gone"), OSError(errno.EIO, "no answer")],
    ids=lambda error: type(error).__name__,
)
def test_a_folio_interrupted_in_any_of_its_batches_leaves_the_store_whole_and_empty_there(
    error: BaseException, good: int
) -> None:
    backend = FailingBackend(good + 1, raising(error))
    pages = [(text, noise)[number % 2](number) for number in range(16)]
    with Engine("lz4", backend=backend) as engine, SwapStore(engine, max_batch=4) as store:
        store.store(10, [text(1), noise(2), text(3), ZEROS, ZEROS])
        store.invalidate(10, 3)
        store.store(10, [word(1), word(2)])  # no batch of the backend
        with pytest.raises(type(error)):
            store.store(0, pages)
        store.check_invariants()
        assert len(store) == 0
        assert store._resources.pool.objects == 0
        store.store(0, pages)
        assert store.load_many(range(16)).tobytes() == b"".join(pages)
        store.check_invariants()


def test_a_backend_that_fails_at_loading_loses_no_page() -> None:
    backend = FailingBackend(1, raising(KeyboardInterrupt()))
    with Engine("lz4", backend=backend) as engine, SwapStore(engine) as store:
        pages = [text(number) for number in range(40)]
        store.store(0, pages)
        with pytest.raises(KeyboardInterrupt):
            store.load_many(range(40))
        assert store.load_many(range(40)).tobytes() == b"".join(pages)
        assert store.counters.decompress_fail == 0
        store.check_invariants()


def of_the_store(file: Path) -> bool:
    return "/batchzip/store/" in file.as_posix()


INTERRUPTED: dict[str, Callable[[SwapStore, list[bytes]], object]] = {
    "store": lambda store, pages: store.store(509, pages),
    "invalidate": lambda store, pages: store.invalidate(509, len(pages)),
    "load": lambda store, _: [store.load(index) for index in (509, 510, 511)],
    "load_many": lambda store, pages: store.load_many(range(509, 509 + len(pages))),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", INTERRUPTED)
def test_an_interrupt_at_any_line_of_the_store_leaves_all_or_nothing(
    engine: Engine, call: str
) -> None:
    old = [text(1), noise(2), ZEROS, word(3), text(4), noise(5)]
    new = [noise(11), ZEROS, text(12), text(13), noise(14), word(15)]
    allowed = {"store": [old, new, []], "invalidate": [old, []]}.get(call, [old])
    where = range(509, 515)  # across a block of the table
    torn = []
    for step in itertools.count(1):
        with SwapStore(engine, max_batch=2) as store:
            store.store(509, old)
            place = interrupted_at(
                step,
                lambda store=store: INTERRUPTED[call](store, new),  # type: ignore[misc]
                of_the_store,
            )
            try:
                store.check_invariants()
                there = [bytes(store.load(index)) for index in where if index in store]
                assert there in allowed
                store.store(509, new)
                store.check_invariants()
                assert store.load_many(where).tobytes() == b"".join(new)
            except (AssertionError, BatchzipError) as error:
                torn.append(f"{place}: {error}")
        if place is None:
            break
    assert not torn, "\n".join(torn)


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("form", [list, b"".join, lambda new: np.array([*map(bytearray, new)])])
def test_without_memory_to_look_at_the_pages_the_old_ones_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, form: Callable[[list[bytes]], Any]
) -> None:
    with SwapStore(engine) as store:
        store.store(7, [text(n) for n in range(4)])
        monkeypatch.setattr("batchzip.store.group.as_pages", no_memory)
        with pytest.raises(StoreRejected, match="no memory"):
            store.store(8, form([text(8), text(9)]))
        assert [index for index in range(20) if index in store] == [7, 10]
        assert store.counters.reject_alloc_fail == 1
        store.check_invariants()
