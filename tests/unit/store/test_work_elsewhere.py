"""A store on a backend that works elsewhere sends a batch's inputs and takes back the results."""

from __future__ import annotations

import errno
import gc
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.codecs.faulty import RAISE, FaultyCodec
from support.store_pages import SIZE, ZEROS, noise, text

from batchzip import Backend, CompressBatch, Engine, StoreRejected, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.batch import Batch


class Elsewhere(Backend):
    """Runs the codec on copies of the inputs, in shares of three pages, the last share first."""

    name = "elsewhere"
    batch_size = 64

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, batch: Batch) -> None:
        assert self.codec is not None
        self.batches.append(len(batch))
        compresses = batch.operation == CompressBatch.operation
        make = self.codec.compressor if compresses else self.codec.decompressor
        order = batch.order()
        for start in reversed(range(0, len(order), 3)):
            share = order[start : start + 3]
            done = [self.work(make(self.page_size), bytes(each)) for each in batch.inputs(share)]
            lengths = [-errno.EIO if each is None else len(each) for each in done]
            room = 0 if compresses else self.page_size
            memory = b"".join((each or b"").ljust(room) for each in done)
            assert batch.accept(share, memory, np.array(lengths, np.int32))

    def work(self, call: Callable[[bytes], bytes], data: bytes) -> bytes | None:
        try:
            return call(data)
        except (RuntimeError, ValueError):
            return None


@pytest.fixture
def backend() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def store(backend: Elsewhere) -> Iterator[SwapStore]:
    with Engine("lz4", backend=backend) as engine, SwapStore(engine, max_batch=8) as store:
        yield store
        store.check_invariants()


def test_a_folio_goes_in_batches_and_comes_back(store: SwapStore, backend: Elsewhere) -> None:
    pages = [text(number) for number in range(20)]
    pages[3], pages[7] = ZEROS, noise(7)
    store.store(0, pages)
    assert backend.batches == [8, 8, 3]  # a page of zeros is not compressed
    assert store.counters.stored_incompressible_pages == 1
    backend.batches.clear()
    assert store.load_many(range(20)).tobytes() == b"".join(pages)
    assert backend.batches == [18]  # nor restored, and neither is the one that did not shrink
    assert [store.load(index) for index in (19, 3, 7)] == [pages[19], ZEROS, pages[7]]


def test_folios_one_after_the_other_do_not_mix(store: SwapStore) -> None:
    for first in range(0, 60, 6):
        store.store(first, [text(number) for number in range(first, first + 6)])
    for number in range(60):
        assert store.load(number) == text(number)
    assert store.load_many([5, 59, 0]).tobytes() == text(5) + text(59) + text(0)


def test_a_page_that_fails_there_is_named_and_the_folio_rejected(backend: Elsewhere) -> None:
    with Engine(FaultyCodec(0), backend=backend) as engine, SwapStore(engine) as store:
        store.store(0, [text(0), text(1)])
        bad = RAISE.ljust(SIZE, b"x")
        with pytest.raises(StoreRejected) as rejected:
            store.store(0, [text(2), bad, text(3)])
        assert rejected.value.reason == "reject_compress_fail"
        assert rejected.value.errors is not None
        assert [code < 0 for code in rejected.value.errors] == [False, True, False]
        assert len(store) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_caller_s_pages_are_let_go_when_the_call_ends(
    store: SwapStore, backend: Elsewhere, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    work = backend.work

    def fail(call: Callable[[bytes], bytes], data: bytes) -> bytes | None:
        if len(backend.batches) == 2:
            raise MemoryError("there is none for the second batch")
        return work(call, data)

    pages = np.frombuffer(b"".join(map(text, range(10))), np.uint8).reshape(10, SIZE).copy()
    gone = weakref.ref(pages)
    if fails:
        monkeypatch.setattr(backend, "work", fail)
    gc.disable()
    try:
        with pytest.raises(StoreRejected) if fails else nullcontext():
            store.store(0, pages)
        del pages
        assert gone() is None
    finally:
        gc.enable()
    assert len(store) == (0 if fails else 10)
