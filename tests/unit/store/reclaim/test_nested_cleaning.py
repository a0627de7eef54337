"""A file object may compact the store in the middle of a call that cleaning makes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 1000


class File:
    """Storage in memory that calls `meanwhile` in its next read."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.meanwhile: Callable[[], object] | None = None

    def pread(self, length: int, offset: int) -> bytes:
        called, self.meanwhile = self.meanwhile, None
        if called is not None:
            called()
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: memoryview, offset: int) -> int:
        self.data[offset : offset + len(data)] = data
        return len(data)


def test_cleaning_within_cleaning_does_the_work(engine: Engine) -> None:
    file, freed = File(), []
    pages = [random.Random(seed).randbytes(4096) for seed in range(COUNT)]
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        store.store(0, pages)
        assert store.writeback(COUNT) == COUNT
        for index in range(COUNT):
            if index % 4:
                store.invalidate(index)
        file.meanwhile = lambda: freed.append(store.compact())
        store.compact()
        assert freed[0] > 0
        for index in range(0, COUNT, 4):
            assert store.load(index) == pages[index]
        store.check_invariants()
