"""A load that fails because its page was replaced meanwhile gives the new page."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, PageError, PageNotStored, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = (random.Random(seed).randbytes(4096) for seed in range(2))


class File:
    """Storage in memory; a read fails after `meanwhile` was called, once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.meanwhile: Callable[[], object] | None = None

    def pread(self, length: int, offset: int) -> bytes:
        if self.meanwhile is not None:
            called, self.meanwhile = self.meanwhile, None
            called()
            raise OSError(errno.EIO, "once")
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: memoryview, offset: int) -> int:
        self.data[offset : offset + len(data)] = data
        return len(data)


def load_while(action: Callable[[SwapStore], object]) -> bytes:
    file = File()
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine, backing=file) as store:
        store.store(0, OLD)
        assert store.writeback([0]) == 1
        file.meanwhile = lambda: action(store)
        return bytes(store.load_many([0]))


def test_a_page_that_was_stored_again_is_the_new_one() -> None:
    assert load_while(lambda store: store.store(0, NEW)) == NEW


def test_a_page_that_was_stored_and_written_back_again_is_the_new_one() -> None:
    def replace(store: SwapStore) -> None:
        store.store(0, NEW)
        assert store.writeback([0]) == 1

    assert load_while(replace) == NEW


def test_a_page_that_was_invalidated_is_not_stored() -> None:
    with pytest.raises(PageNotStored):
        load_while(lambda store: store.invalidate(0))


def test_a_page_that_is_still_there_is_an_error() -> None:
    with pytest.raises(PageError):
        load_while(len)
