"""A group that is dropped while something is done to all groups is skipped; the others are not."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable


class File:
    """Storage in memory; `meanwhile` is called in the next write, or the next read."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.in_write: Callable[[], object] | None = None
        self.in_read: Callable[[], object] | None = None

    def pread(self, length: int, offset: int) -> bytes:
        called, self.in_read = self.in_read, None
        if called is not None:
            called()
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: memoryview, offset: int) -> int:
        called, self.in_write = self.in_write, None
        if called is not None:
            called()
        self.data[offset : offset + len(data)] = data
        return len(data)


def noise(count: int) -> list[bytes]:
    return [random.Random(seed).randbytes(4096) for seed in range(count)]


def test_shrinking_goes_on_with_the_other_groups(engine: Engine) -> None:
    file = File()
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        for name in ("one", "two"):
            group = store.group(name)
            group.store(0, noise(8))
            group.max_bytes = group.stored_bytes // 2
        file.in_write = lambda: store.drop_group("one")
        assert store.shrink() >= 4
        assert "one" not in store.groups
        two = store.group("two")
        assert two.counters.backed_pages >= 4
        assert two.load_many(range(8)).tobytes() == b"".join(noise(8))
        store.check_invariants()


def test_the_pool_shrinks_by_the_next_largest_group(engine: Engine) -> None:
    file = File()
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        store.group("large").store(0, noise(64))
        store.group("small").store(0, noise(48))
        store.max_pool_bytes = 16 * 4096
        file.in_write = lambda: store.drop_group("large")
        store.shrink()
        assert store.counters.pool_total_size <= 16 * 4096
        assert store.group("small").load_many(range(48)).tobytes() == b"".join(noise(48))


@pytest.mark.parametrize("dropped", ["one", "two"])
def test_cleaning_goes_on_with_the_other_groups(engine: Engine, dropped: str) -> None:
    file = File()
    with SwapStore(engine, backing=file, shrinker_enabled=False) as store:
        for name in ("one", "two"):
            group = store.group(name)
            group.store(0, noise(400))
            assert group.writeback(400) == 400
            for index in range(0, 400, 2):
                group.invalidate(index, 2 if index % 8 else 1)
        left = {
            name: [at for at in range(400) if at in store.group(name)] for name in ("one", "two")
        }
        file.in_read = lambda: store.drop_group(dropped)
        store.compact()
        assert dropped not in store.groups
        other = store.group("two" if dropped == "one" else "one")
        pages = noise(400)
        for index in left[other.name]:
            assert other.load(index) == pages[index]
        store.check_invariants()
