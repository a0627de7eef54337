"""Target: calls of entry points with arguments that nobody should give."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
from support.entries import records_in
from support.fuzzing import Source
from support.store_pages import noise, text

from batchzip import BatchzipError, CompressBatch, DecompressBatch, Engine, SwapStore
from batchzip.core.coder import Coder, Coders
from batchzip.core.gather import gather, load
from batchzip.core.lane import ThreadLanes
from batchzip.core.ring import Ring, ring_bytes, share_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.fuzzing import Target

SIZE = 512
REFUSALS = (BatchzipError, TypeError, ValueError, BufferError, OverflowError, MemoryError)


class Index:
    """An index that Python code computes."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def __index__(self) -> Any:
        return self._number


def closed() -> mmap.mmap:
    memory = mmap.mmap(-1, SIZE)
    memory.close()
    return memory


def released() -> memoryview:
    view = memoryview(bytearray(SIZE))
    view.release()
    return view


PAGE = text(1, SIZE)
ODD: list[Any] = [
    None, 0, 1, -1, 2, 63, 511, 512, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63,
    -(1 << 63), 1 << 200, 0.5, float("nan"), True, "", "page", "\ud800", b"", b"x", PAGE,
    bytes(SIZE), bytes(SIZE - 1), bytes(SIZE + 1), bytes(3 * SIZE), noise(1, SIZE),
    bytearray(SIZE), bytearray(3 * SIZE), memoryview(PAGE), memoryview(bytes(2 * SIZE))[::2],
    memoryview(bytearray(SIZE))[::-1], memoryview(bytearray(SIZE)).cast("Q"), released(), closed(),
    np.zeros(SIZE, np.uint8), np.zeros((2, SIZE), np.uint8), np.zeros((2, SIZE), np.uint8).T,
    np.zeros((3, 2 * SIZE), np.uint8)[:, ::2], np.zeros(SIZE // 8), np.zeros((0, SIZE), np.uint8),
    np.zeros((2, SIZE), np.uint16), np.zeros(3, np.int64), np.array([0, 1, 1 << 40, -1]),
    np.zeros(4, ">i8"), np.zeros(3, object), np.zeros(3, np.uint32), [], [PAGE], [PAGE] * 3,
    [PAGE, None], [0, 1], [0, -1], [1 << 70], (), (PAGE, PAGE), {}, {1: PAGE}, set(), object(),
    Index(3), Index(-1), Index("no"), slice(3), range(4), range(1 << 40), iter(()), int, len,
]  # fmt: skip
"""Values to give."""


class Arguments:
    """Each call returns or raises an error that names the argument; nothing else changes."""

    def __init__(self) -> None:
        self._engine = Engine("lz4", backend="sequential", page_size=SIZE)
        self._store = SwapStore(self._engine, max_pool_bytes=1 << 20)
        entries, records = self._store._entries, records_in(self._store)
        codec = self._engine.codec
        coder, coders = Coder(codec, SIZE), Coders(codec, SIZE)
        ring = Ring(SIZE, 0)
        self._calls: list[tuple[Callable[..., Any], int]] = [
            (coder.compress, 1),
            (coder.decompress, 1),
            (coders.compress_page, 1),
            (coders.decompress_page, 1),
            (lambda size: Coder(codec, size), 1),
            (self._compress, 3),
            (self._decompress, 2),
            (self._store.store, 2),
            (self._store.load, 1),
            (lambda index, out: self._store.load(index, out=out), 2),
            (self._store.load_many, 1),
            (lambda indices, out: self._store.load_many(indices, out=out), 2),
            (self._store.invalidate, 2),
            (self._store.__contains__, 1),
            (lambda index, out: load(entries, index, out), 2),
            (lambda indices: gather(entries, indices), 1),
            (records.put, 2),
            (records.get, 1),
            (records.remove, 1),
            (records.put_many, 3),
            (records.get_many, 1),
            (records.contains, 1),
            (records.shrink, 1),
            (ring.is_neglected, 1),
            (lambda size, memory: Ring(size, 0, memory), 2),
            (ring_bytes, 1),
            (share_pages, 1),
            (lambda size: ThreadLanes(codec, size, 0), 1),
            (self._store.group, 1),
            (self._store.writeback, 1),
            (entries.kind, 1),
        ]
        self._made = 0

    def close(self) -> None:
        self._store.close()
        self._engine.close()

    def _compress(self, pages: Any, dsts: Any, capacity: Any) -> None:
        if isinstance(capacity, int) and capacity >> 31 == 1:
            return  # a right to gigabytes for each page: libFuzzer would take it for a fault
        batch = CompressBatch(pages, dsts=dsts, capacity=capacity, page_size=SIZE)
        self._engine.compress(batch)
        batch.outputs()

    def _decompress(self, sources: Any, pages: Any) -> None:
        self._engine.decompress(DecompressBatch(sources, pages=pages, page_size=SIZE))

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        while source:
            call, count = self._calls[source.byte() % len(self._calls)]
            arguments = [ODD[source.byte() % len(ODD)] for _ in range(count)]
            try:
                call(*arguments)
            except REFUSALS:
                continue
        self._made += 1
        if self._made % 256 == 0:
            self._store.check_invariants()
            self._store.invalidate(0, 1 << 40)
            for name in self._store.groups:
                self._store.group(name).close()

    def seeds(self) -> Iterator[bytes]:
        for number, (_, count) in enumerate(self._calls):
            yield bytes([number, *([0] * count)])
            yield bytes([number, *range(20, 20 + count)])


TARGETS: dict[str, type[Target]] = {"arguments": Arguments}
