"""Measure a store of 10⁴ to 10⁷ pages: cost per operation and memory per page must stay constant.

    python examples/benchmarks/growth.py [--largest 1000000] [--json FILE] [--plot PNG]

Pages are synthetic, so that ten million fit: one in four is same-filled, and lz4 compresses each of
the others to about 30 bytes. The store is filled to each size in turn. The cost of a store is that
of the last pages. Random pages of the whole store give the costs of single loads, of loads in
batches of 256, and of replacing pages. The backend is sequential, because the store grows and the
codec does not matter.

`reads alone` is the cost of memory accesses: the entry, the handle's word and the object's bytes of
random pages are read, singly or 256 at a time, and nothing else is done. The memory is as large as
the store's tables and objects. Entries are in private memory, words and objects in shared memory.
The second table shows the growth compared with the smallest store. The growth of a load beyond that
of its reads is not caused by cache misses.

`tables` and `pool` are the store's own figures. `process` is the growth of the process since the
store got its first folio, including the pool's shared memory.
"""

from __future__ import annotations

import argparse
import mmap
import struct
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import batchzip
from batchzip.bench.figure import Result, load
from batchzip.bench.pages import PAGE
from batchzip.bench.rounds import figure
from batchzip.bench.style import OTHERS, OWN, REFERENCE, drawing
from batchzip.system.segment import Segment
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from batchzip.bench.pages import Pages

FOLIO_PAGES = 256
OBJECT = 32
"""Approximate compressed bytes of a page."""

SAMPLES = 40
"""Batches of FOLIO_PAGES that are timed at each size: 10,240 pages, about the smallest store."""

SINGLES = 10_000

COSTS = (
    "store",
    "store anew",
    "invalidate and store",
    "load_many",
    "its reads alone",
    "single load",
    "its 3 reads alone",
)
SIZES = ("tables", "pool", "process")


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

    def fill(self, count: int) -> list[float]:
        """Store pages until there are `count`. Return the µs per page of the last folios."""
        spent = []
        while self.count < count:
            pages = self._folio(self.count)
            begun = time.perf_counter()
            self._store.store(self.count, pages)
            spent.append(time.perf_counter() - begun)
            self.count += FOLIO_PAGES
        return [s / FOLIO_PAGES * 1e6 for s in spent[-SAMPLES:]]

    def anew(self, *, invalidate: bool) -> list[float]:
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
        return spent

    def load_many(self) -> list[float]:
        """Load random pages in batches and verify them. Return µs per page."""
        spent = []
        for _ in range(SAMPLES):
            indices = self._rng.integers(0, self.count, FOLIO_PAGES)
            begun = time.perf_counter()
            self._store.load_many(indices, out=self._out)
            spent.append((time.perf_counter() - begun) / FOLIO_PAGES * 1e6)
            wanted = np.where(indices % FOLIO_PAGES % 4, indices, 0).astype(np.uint64)
            assert np.array_equal(self._out.view(np.uint64)[:, 0], wanted), "other pages came back"
        return spent

    def load(self) -> list[float]:
        """Load random pages one by one. Return µs per page."""
        clock, load = time.perf_counter, self._store.load
        spent = []
        for index in self._rng.integers(0, self.count, SINGLES).tolist():
            begun = clock()
            load(index)
            spent.append((clock() - begun) * 1e6)
        return spent

    def held(self) -> dict[str, float]:
        """Return the bytes per page in tables, pool and process."""
        counters = self._store.counters
        held = {
            "tables": self._store.table_bytes,
            "pool": counters.pool_total_size,
            "process": resident_bytes() - self._before,
        }
        return {name: value / self.count for name, value in held.items()}


class Memory:
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

    def read(self) -> list[float]:
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
        return spent

    def read_many(self) -> list[float]:
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
        return spent

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


def run(result: Result, largest: int) -> None:
    """Measure each power of ten up to `largest`."""
    with (
        batchzip.Engine("lz4", backend="sequential") as engine,
        batchzip.SwapStore(engine) as store,
    ):
        growing = Growing(store)
        count = 10_000
        while count <= largest:
            stored = growing.fill(count)
            costs = {
                "store": stored,
                "store anew": growing.anew(invalidate=False),
                "load_many": growing.load_many(),
                "single load": growing.load(),
                "invalidate and store": growing.anew(invalidate=True),
            }
            held = growing.held()
            memory = Memory(count)
            costs |= {"its 3 reads alone": memory.read(), "its reads alone": memory.read_many()}
            memory.close()
            labels: dict[str, str | int] = {"benchmark": "growth", "pages": count}
            for name in COSTS:
                result.figures.append(figure(labels, name, "µs per page", costs[name]))
            for name, value in held.items():
                result.figures.append(figure(labels, name, "bytes per page", [value]))
            count *= 10


def show(result: Result) -> None:
    """Print a line per size."""
    table = Table("medians of one page, by the number of pages stored")
    table.add_column("pages")
    for name in (*(f"{name}, µs" for name in COSTS), *(f"{name}, bytes" for name in SIZES)):
        table.add_column(name)
    for count in dict.fromkeys(one.labels["pages"] for one in result.figures):
        by = {one.contender: one for one in result.of(pages=count)}
        cells = [f"{by[name].median:.2f}" for name in COSTS]
        cells += [f"{by[name].median:.1f}" for name in SIZES]
        table.add_row(f"{count:,}", *cells)
    make_console().print(table)
    counts = list(dict.fromkeys(one.labels["pages"] for one in result.figures))
    table = Table("µs more than in the smallest store")
    for name in ("pages", *COSTS):
        table.add_column(name)
    first = {one.contender: one.median for one in result.of(pages=counts[0])}
    for count in counts[1:]:
        medians = {one.contender: one.median for one in result.of(pages=count)}
        table.add_row(f"{count:,}", *(f"{medians[name] - first[name]:+.2f}" for name in COSTS))
    make_console().print(table)


def draw(result: Result, path: Path) -> None:
    """Draw costs and sizes against the number of pages."""
    counts = list(dict.fromkeys(int(one.labels["pages"]) for one in result.figures))
    with drawing(path, 4.2, "A store that grows: flat is good") as picture:
        panels = picture.subplots(1, 2)
        for axes, names, title in zip(
            panels, (COSTS, SIZES), ("µs per page", "bytes per page"), strict=True
        ):
            styles = chain(OWN, OTHERS)
            for name in names:
                values = [one.median for one in result.figures if one.contender == name]
                style = REFERENCE if name.endswith("alone") else next(styles)
                axes.plot(counts, values, label=name, **style)
            axes.set_xscale("log")
            axes.set_ylim(0)
            axes.set_xlabel("pages stored")
            axes.set_title(title)
            axes.grid(visible=True, axis="y")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--largest", type=int, default=1_000_000, help="pages (%(default)s)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--show", type=Path, help="only show and draw what --json wrote")
    options = parser.parse_args()
    if options.show:
        result = load(options.show)
    else:
        result = Result({"largest": options.largest}, {})
        run(result, options.largest)
    machine = result.machine
    print(f"{machine['platform']}, {machine['processor']}, {machine['cpus']} CPUs")
    show(result)
    if options.json:
        result.save(options.json)
    if options.plot:
        draw(result, options.plot)


if __name__ == "__main__":
    main()
