"""Stores and mappings of any size, for growth.py. Each call returns what one round measured.

The value of a round is the median of its samples.
"""

from __future__ import annotations

import mmap
import statistics
import struct
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from usemem import Client, at_once

import batchzip
from batchzip.bench.pages import PAGE
from batchzip.system.lifetime import Closing
from batchzip.system.segment import Segment

if TYPE_CHECKING:
    from batchzip.bench.pages import Pages

FOLIO_PAGES = 256
OBJECT = 32
"""Approximate compressed bytes of a page."""

SAMPLES = 40
"""Batches of FOLIO_PAGES that are timed at each size: 10,240 pages, about the smallest store."""

SINGLES = 10_000


class Growing:
    """A store that is filled step by step."""

    def __init__(self, store: batchzip.SwapStore) -> None:
        self._store = store
        self._pages = np.zeros((FOLIO_PAGES, PAGE), np.uint8)
        self._out = np.zeros((FOLIO_PAGES, PAGE), np.uint8)
        self._rng = np.random.default_rng(6)
        self.count = 0
        # The memory of an almost empty store is not counted as growth.
        self.fill(FOLIO_PAGES)
        self.load_many()
        self._before = resident_bytes()

    def _folio(self, first: int) -> Pages:
        """Return pages that contain their indices. One in four is same-filled."""
        words = self._pages.view(np.uint64)
        words[:, 0] = np.arange(first, first + FOLIO_PAGES, dtype=np.uint64)
        words[::4, 0] = 0
        return self._pages

    def fill(self, count: int) -> float:
        """Store pages until there are `count`. Return the µs per page of the last folios."""
        spent = []
        while self.count < count:
            pages = self._folio(self.count)
            begun = time.perf_counter()
            self._store.store(self.count, pages)
            spent.append(time.perf_counter() - begun)
            self.count += FOLIO_PAGES
        return statistics.median(spent[-SAMPLES:]) / FOLIO_PAGES * 1e6

    def replace(self, *, invalidate: bool) -> float:
        """Replace random folios, in place or after invalidating them. Return µs per page."""
        spent = []
        places = self._rng.integers(0, self.count // FOLIO_PAGES, SAMPLES) * FOLIO_PAGES
        for first in places.tolist():
            pages = self._folio(first)
            begun = time.perf_counter()
            if invalidate:
                self._store.invalidate(first, FOLIO_PAGES)
            self._store.store(first, pages)
            spent.append((time.perf_counter() - begun) / FOLIO_PAGES * 1e6)
        return statistics.median(spent)

    def load_many(self) -> float:
        """Load random pages in batches and verify them. Return µs per page."""
        spent = []
        for _ in range(SAMPLES):
            indices = self._rng.integers(0, self.count, FOLIO_PAGES)
            begun = time.perf_counter()
            self._store.load_many(indices, out=self._out)
            spent.append((time.perf_counter() - begun) / FOLIO_PAGES * 1e6)
            wanted = np.where(indices % FOLIO_PAGES % 4, indices, 0).astype(np.uint64)
            assert np.array_equal(self._out.view(np.uint64)[:, 0], wanted), "other pages came back"
        return statistics.median(spent)

    def load(self) -> float:
        """Load random pages one by one. Return µs per page."""
        clock, load = time.perf_counter, self._store.load
        spent = []
        for index in self._rng.integers(0, self.count, SINGLES).tolist():
            begun = clock()
            load(index)
            spent.append((clock() - begun) * 1e6)
        return statistics.median(spent)

    def held(self) -> dict[str, float]:
        """Return the bytes per page in tables, pool and process."""
        counters = self._store.counters
        held = {
            "tables": self._store.table_bytes,
            "pool": counters.pool_total_size,
            "process": resident_bytes() - self._before,
        }
        return {name: value / self.count for name, value in held.items()}


class Memory(Closing):
    """Empty memory of the same size as that of a store of `count` pages."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rng = np.random.default_rng(7)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._table = mmap.mmap(-1, max(16 * count, mmap.PAGESIZE), flags=private)
        self._segments = [Segment(max(size * count, mmap.PAGESIZE)) for size in (8, OBJECT)]
        for segment in self._segments:
            segment.reserve(0, segment.size)
        self._entries = memoryview(self._table)
        self._words = self._segments[0].view
        for view in (self._entries, *(segment.view for segment in self._segments)):
            view[:] = bytes(len(view))  # first touches fault, and must not be timed

    def read(self) -> float:
        """Read the words of random pages one by one. Return µs per page."""
        clock, unpack, objects = time.perf_counter, struct.Struct("<QQ").unpack_from, self._objects
        entries, words = self._entries, self._words.cast("Q")
        spent = []
        for index in self._rng.integers(0, self._count, SINGLES).tolist():
            begun = clock()
            unpack(entries, index * 16)
            words[index]
            objects[index * OBJECT : index * OBJECT + OBJECT]
            spent.append((clock() - begun) * 1e6)
        words.release()
        return statistics.median(spent)

    def read_many(self) -> float:
        """Read the words of random pages in batches. Return µs per page."""
        objects = self._objects
        entries = np.frombuffer(self._entries, np.complex128, self._count)
        words = np.frombuffer(self._words, np.uint64, self._count)
        spent = []
        for _ in range(SAMPLES):
            indices = self._rng.integers(0, self._count, FOLIO_PAGES)
            begun = time.perf_counter()
            entries[indices]
            words[indices]
            starts = (indices * OBJECT).tolist()
            [objects[start : start + OBJECT] for start in starts]
            spent.append((time.perf_counter() - begun) / FOLIO_PAGES * 1e6)
        return statistics.median(spent)

    @property
    def _objects(self) -> mmap.mmap:
        return self._segments[1].memory

    def close(self) -> None:
        """Free the memory."""
        self._entries.release()
        self._table.close()
        for segment in self._segments:
            segment.close()


def resident_bytes() -> int:
    """Return the resident bytes of this process, including shared memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


class Sized(Closing):
    """A store of a number of bytes in pages of any size, of the same content."""

    def __init__(self, page_size: int, pages: Pages) -> None:
        self.page_size = page_size
        self.pages = pages.reshape(-1, page_size)
        self._engine = batchzip.Engine("lz4", backend="sequential", page_size=page_size)
        self._store = batchzip.SwapStore(self._engine)
        self._order = np.random.default_rng(8)

    def measure(self) -> dict[str, float]:
        """Return the µs per MiB to store, load as a batch, and load single pages."""
        mib = self.pages.nbytes / 2**20
        most = max(1, (1 << 20) // self.page_size)
        started = time.perf_counter()
        for at in range(0, len(self.pages), most):
            self._store.store(at, self.pages[at : at + most])
        stored = time.perf_counter() - started
        order = self._order.permutation(len(self.pages))
        started = time.perf_counter()
        for at in range(0, len(order), most):
            self._store.load_many(order[at : at + most])
        loaded = time.perf_counter() - started
        load = self._store.load
        started = time.perf_counter()
        for index in order.tolist():
            load(index)
        single = time.perf_counter() - started
        spent = {"store": stored, "load_many": loaded, "single load": single}
        return {name: seconds / mib * 1e6 for name, seconds in spent.items()}

    @property
    def held(self) -> float:
        """Bytes that the store holds per byte of the pages."""
        held = self._store.counters.pool_total_size + self._store.table_bytes
        return held / self.pages.nbytes

    def close(self) -> None:
        """Close the store and its engine."""
        self._store.close()
        self._engine.close()


class Grouped(Closing):
    """A store whose pages are spread over a number of groups."""

    def __init__(self, groups: int, pages: Pages) -> None:
        self._engine = batchzip.Engine("lz4", backend="sequential")
        self._store = batchzip.SwapStore(self._engine)
        self.groups = [self._store.group(f"group {number}") for number in range(groups)]
        self._pages = pages
        self._random = np.random.default_rng(9)

    def measure(self) -> dict[str, float]:
        """Return the µs per page to store folios of 16 in random groups, and to load single pages.

        Also return the µs to read the counters of all groups, per group.
        """
        places = self._random.integers(0, len(self.groups), len(self._pages) // 16).tolist()
        started = time.perf_counter()
        for number, place in enumerate(places):
            at = number * 16
            self.groups[place].store(at, self._pages[at : at + 16])
        stored = time.perf_counter() - started
        started = time.perf_counter()
        for number, place in enumerate(places):
            self.groups[place].load(number * 16)
        loaded = time.perf_counter() - started
        started = time.perf_counter()
        self._store.counters_by_group()
        counted = time.perf_counter() - started
        return {
            "store": stored / len(places) / 16 * 1e6,
            "single load": loaded / len(places) * 1e6,
            "counters, per group": counted / len(self.groups) * 1e6,
        }

    def close(self) -> None:
        """Close the store and its engine."""
        self._store.close()
        self._engine.close()


def clients(number: int, pages: Pages) -> dict[str, float]:
    """Let threads store folios of 16 and load single pages. Return the µs per page of all."""
    parts = [part for part in np.array_split(pages, number) if len(part)]
    with (
        batchzip.Engine("lz4", backend="sequential") as engine,
        batchzip.SwapStore(engine) as store,
    ):
        several = [Client(at * len(pages), part) for at, part in enumerate(parts)]
        started = time.perf_counter()
        at_once([partial(one.store, store, 16, alone=False) for one in several])
        stored = time.perf_counter() - started
        started = time.perf_counter()
        at_once([partial(one.load, store) for one in several])
        loaded = time.perf_counter() - started
    loads = sum(len(one.loads) for one in several)
    return {"store": stored / len(pages) * 1e6, "single load": loaded / loads * 1e6}


class Values(Closing):
    """A mapping that is filled step by step with values of 200 bytes."""

    def __init__(self) -> None:
        self._mapping = batchzip.CompressedMapping()
        self._random = np.random.default_rng(10)
        self._before = resident_bytes()
        self.count = 0

    def _value(self, number: int) -> bytes:
        return b'{"user": %d, "mail": "user-%d@example.org", "orders": [' % (number, number) + (
            b'{"paid": true, "sum": %d}, ' % (number % 999) * 6
        )

    def fill(self, count: int) -> float:
        """Put values until there are `count`. Return the µs per value of the last pieces."""
        spent = []
        while self.count < count:
            step = range(self.count, min(count, self.count + FOLIO_PAGES))
            items = {f"item:{number:08}": self._value(number) for number in step}
            started = time.perf_counter()
            self._mapping.update(items)
            spent.append((time.perf_counter() - started) / len(step) * 1e6)
            self.count = step.stop
        return statistics.median(spent[-SAMPLES:])

    def measure(self) -> dict[str, float]:
        """Replace and read random values by single calls and in batches. Return µs per value."""
        mapping = self._mapping
        numbers = self._random.integers(0, self.count, 2000).tolist()
        items = {f"item:{number:08}": self._value(number) for number in numbers}
        parts = [list(items)[at : at + FOLIO_PAGES] for at in range(0, len(items), FOLIO_PAGES)]
        started = time.perf_counter()
        for key, value in items.items():
            mapping[key] = value
        put = time.perf_counter()
        for key in items:
            mapping[key]
        got = time.perf_counter()
        for part in parts:
            mapping.get_many(part)
        many = time.perf_counter()
        assert all(mapping[key] == items[key] for key in parts[0]), "other values came back"
        spent = {"put": put - started, "get": got - put, "get_many": many - got}
        return {name: seconds / len(items) * 1e6 for name, seconds in spent.items()}

    def held(self) -> dict[str, float]:
        """Return the bytes per value, by the mapping's account and in the process."""
        total = self._mapping.memory_usage().total
        process = resident_bytes() - self._before
        return {"mapping": total / self.count, "process": process / self.count}

    def close(self) -> None:
        """Close the mapping."""
        self._mapping.close()
