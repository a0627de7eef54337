"""Working sets: all pages into what is to hold them, and out again, batch by batch and one by one.

    contender              holds pages as
    store                  batchzip.SwapStore, workers where they help
    store, limited         the same with a pool for half of it, the rest in a backing file
    dict                   a dict of compressed bytes: what one would write in an hour
    blosc2                 an SChunk of one page a chunk
    zram                   the kernel's device, O_DIRECT

Each holds the same pages, compressed by the same algorithm. Loads are in random order. `held_by_stored` is the
memory held ÷ the bytes that the compressed pages have; of the dict as sys.getsizeof tells.
"""

# ruff: noqa: D102 - Holder says what each method does

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.bench import zram
from batchzip.bench.inputs import PAGE
from batchzip.bench.peers import ALGORITHMS, Blosc, has_blosc
from batchzip.bench.result import Row
from batchzip.bench.rounds import measure
from batchzip.codecs import make_codec
from batchzip.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.buffers import Bytes

FOLIO = 16
"""Pages stored at once: 64 KiB, the kernel's commonest large folio."""

BATCH = 256
"""Pages loaded at once."""


class Holder(Closing):
    """Holds pages. `load` takes indices; what it gives is not looked at again."""

    def store(self) -> object:
        """Store all pages anew."""
        raise NotImplementedError

    def load(self, index: int) -> object:
        """Load one page."""
        raise NotImplementedError

    def load_all(self, order: list[int]) -> object:
        """Load all pages, in that order."""
        for index in order:
            self.load(index)
        return None

    def memory(self) -> tuple[int, int]:
        """Bytes that the compressed pages have, and bytes held for them."""
        raise NotImplementedError


class InStore(Holder):
    """A SwapStore; with a share of what it needs as its limit, if that is given."""

    def __init__(self, algorithm: str, pages: Bytes, limit: int | None = None) -> None:
        name, parameters = ALGORITHMS[algorithm]
        self.pages = pages
        self.stack = ExitStack()
        engine = self.stack.enter_context(batchzip.Engine(make_codec(name, **parameters)))
        engine.wait_ready()
        backing = None if limit is None else tempfile.gettempdir()
        self.swap = self.stack.enter_context(
            batchzip.SwapStore(engine, max_pool_bytes=limit, backing=backing)
        )
        self.room = np.empty((BATCH, PAGE), np.uint8)

    def store(self) -> object:
        for at in range(0, len(self.pages), FOLIO):
            self.swap.store(at, self.pages[at : at + FOLIO])
        return None

    def load(self, index: int) -> object:
        return self.swap.load(index)

    def load_all(self, order: list[int]) -> object:
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            self.swap.load_many(part, out=self.room[: len(part)])
        return None

    def memory(self) -> tuple[int, int]:
        counters = self.swap.counters
        # What lies in the file is stored, and held by no memory.
        return self.swap.compressed_bytes + counters.backing_file_size, counters.pool_total_size

    def close(self) -> None:
        self.stack.close()


class InDict(Holder):
    """A dict of bytes."""

    def __init__(self, algorithm: str, pages: Bytes) -> None:
        name, parameters = ALGORITHMS[algorithm]
        codec = make_codec(name, **parameters)
        self.compress, self.decompress = codec.compressor(PAGE), codec.decompressor(PAGE)
        self.pages = [memoryview(page) for page in pages]
        self.kept: dict[int, bytes] = {}

    def store(self) -> object:
        kept, compress = self.kept, self.compress
        for index, page in enumerate(self.pages):
            kept[index] = bytes(compress(page))
        return None

    def load(self, index: int) -> object:
        return self.decompress(self.kept[index])

    def memory(self) -> tuple[int, int]:
        values = list(self.kept.values())
        integers = sum(map(sys.getsizeof, self.kept))
        held = sys.getsizeof(self.kept) + integers + sum(map(sys.getsizeof, values))
        return sum(map(len, values)), held

    def close(self) -> None:
        self.kept.clear()


class InBlosc(Holder):
    """An SChunk of one page a chunk."""

    def __init__(self, algorithm: str, pages: Bytes) -> None:
        self.blosc = Blosc(algorithm, pages, 1)

    def store(self) -> object:
        self.schunk = self.blosc.compress()
        return None

    def load(self, index: int) -> object:
        return self.schunk.decompress_chunk(index, self.blosc.room)

    def memory(self) -> tuple[int, int]:
        # Headers of 32 bytes a chunk are a part of what blosc2 calls compressed.
        return self.schunk.cbytes, self.schunk.cbytes

    def close(self) -> None:
        self.blosc.close()


class InZram(Holder):
    """A zram device."""

    def __init__(self, pages: Bytes) -> None:
        self.device = zram.Zram(pages.nbytes)
        self.data = zram.aligned(pages)
        self.room = zram.aligned(pages[:1])

    def store(self) -> object:
        self.device.write(self.data, FOLIO * PAGE)
        return None

    def load(self, index: int) -> object:
        return self.device.read_at(self.room, index * PAGE)

    def memory(self) -> tuple[int, int]:
        return self.device.compressed_bytes, self.device.held_bytes

    def close(self) -> None:
        self.device.close()


def working_set(
    pages: Bytes,
    algorithms: list[str],
    rounds: int,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure all holders side by side."""
    rows = []
    for algorithm in algorithms:
        tell(f"working set, {algorithm}")
        with ExitStack() as stack:
            holders: dict[str, Holder] = {
                "store": stack.enter_context(InStore(algorithm, pages)),
                "dict": stack.enter_context(InDict(algorithm, pages)),
            }
            holders["store"].store()
            half = holders["store"].memory()[1] // 2
            holders["store, limited"] = stack.enter_context(InStore(algorithm, pages, half))
            if has_blosc() and algorithm in {"lz4", "zstd 1", "zstd 3"}:
                holders["blosc2"] = stack.enter_context(InBlosc(algorithm, pages))
            if algorithm == "lz4" and not zram.why_not():
                holders["zram"] = stack.enter_context(InZram(pages))
            rows += _measured(algorithm, pages, holders, rounds)
    return rows


def _measured(algorithm: str, pages: Bytes, holders: dict[str, Holder], rounds: int) -> list[Row]:
    count = len(pages)
    order = np.random.default_rng(1).permutation(count).tolist()
    stores = measure({name: holder.store for name, holder in holders.items()}, rounds)
    loads = measure(
        {name: partial(holder.load_all, order) for name, holder in holders.items()}, rounds
    )
    rows = []
    for name, holder in holders.items():
        stored, held = holder.memory()
        memory = {"held_bytes": float(held)}
        if stored:  # same-filled pages are kept as a word
            memory["held_by_stored"] = held / stored
        for operation, found in (("store", stores[name]), ("load", loads[name])):
            us = [1e6 * seconds / count for seconds in (found.median, found.low, found.high)]
            ratio = pages.nbytes / stored if stored else None
            more = memory if operation == "store" else {}
            row = Row("swap", operation, algorithm, FOLIO, name, us[0], us[1], us[2], ratio, more)
            rows.append(row)
        p = np.percentile(singles(holder, order), [25, 50, 75, 99, 99.9]) / 1e3
        tail = {"p50_us": p[1], "p99_us": p[3], "p99_9_us": p[4]}
        rows.append(
            Row(
                "swap",
                "single load",
                algorithm,
                1,
                name,
                p[1],
                p[0],
                p[2],
                more={key: float(value) for key, value in tail.items()},
            )
        )
    return rows


def singles(holder: Holder, order: list[int]) -> Any:
    """Nanoseconds of each single load."""
    load, clock = holder.load, time.perf_counter_ns
    found = np.empty(len(order), np.int64)
    for row, index in enumerate(order):
        started = clock()
        load(index)
        found[row] = clock() - started
    return found
