"""The store: µs a page on top of the engine's work, and bytes of tables a page.

    python examples/benchmarks/store.py [--rounds 15] [--pages 8192] [--batches 1,8,64,256]
                                        [--algorithms lz4,zstd:1] [--json FILE]
                                        [--pid N | --file PATH | --workload KIND]

On pages of a real process, shuffled, without the same-filled ones, in this process (`sequential`): so that
what the store adds can be told from what workers save. Every figure is the median, over the rounds, of a
difference taken batch by batch: the bare work and the store's are done one after the other, in an order that
changes from batch to batch.

store      `store(index, pages)` − `engine.compress` of the same pages, with one descriptor that is
           refilled. `new` is the first round, in which the pool grows, `again` are the others: the pages
           are there already, and their old versions are freed.
           `floor` is what it cannot be without: checksums of the outputs and a copy of each, in a loop that
           does nothing else.
load       `load(index)` of a random page − a call of the codec on the same stored bytes; `exclusive` the
           same with exclusive=True. `floor` is a copy and a checksum of these bytes.
load many  `load_many(indices)` − `engine.decompress` of the same bytes, with descriptors made before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from xxhash import xxh3_64_intdigest

import batchzip
from batchzip.bench.algorithm import DEFAULT, parse_algorithms
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.table import console
from batchzip.store import SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.bench.algorithm import Algorithm
    from batchzip.buffers import Bytes

GOALS = {"store": 0.8, "load": 1.0, "tables": 32}
"""µs a page stored, µs a page loaded on its own (lz4), and bytes of tables a page."""

_OUTPUT_BYTES = PAGE + 64
_COPIES = 8


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def over(bare: Callable[[], object], whole: Callable[[], object], turn: int) -> tuple[float, float]:
    """Seconds of the bare work, and how many more the whole takes; who is first is the turn's."""
    if turn % 2:
        first = seconds(whole)
        base = seconds(bare)
        return base, first - base
    base = seconds(bare)
    return base, seconds(whole) - base


class Bench:
    """An engine, and what it made of the pages."""

    def __init__(self, algorithm: Algorithm, pages: Bytes) -> None:
        self.algorithm = algorithm.label
        self.pages = pages
        self.engine = batchzip.Engine(algorithm.codec(), backend="sequential")
        codec = algorithm.codec()
        compress = codec.compressor(PAGE)
        self.decompress = codec.decompressor(PAGE)
        self.outputs = [bytes(compress(page.tobytes())) for page in pages]

    def row(self, operation: str, batch: int, **us: float) -> dict[str, Any]:
        """Make a row of the report."""
        return {"algorithm": self.algorithm, "operation": operation, "batch": batch, "us": us}

    def store(self, size: int, rounds: int) -> list[dict[str, Any]]:
        """Store all pages again and again, in folios of `size`."""
        batch = batchzip.CompressBatch(
            self.engine.arena(size), dsts=self.engine.arena(size, _OUTPUT_BYTES)
        )
        bare: dict[str, list[float]] = {"new": [], "again": []}
        more: dict[str, list[float]] = {"new": [], "again": []}
        floor: list[float] = []
        with SwapStore(self.engine) as store:
            for turn in range(rounds + 1):
                name = "again" if turn else "new"
                for number, at in enumerate(range(0, len(self.pages), size)):
                    pages = self.pages[at : at + size]

                    def compress(pages: Bytes = pages) -> None:
                        batch.refill(pages)
                        self.engine.compress(batch)

                    def keep(at: int = at, pages: Bytes = pages) -> None:
                        store.store(at, pages)

                    base, extra = over(compress, keep, number + turn)
                    bare[name].append(base / size)
                    more[name].append(extra / size)
                    floor.append(_copied(batch.outputs()) / size)
        return [
            self.row(
                f"store {name}",
                size,
                bare=statistics.median(bare[name]) * 1e6,
                more=statistics.median(more[name]) * 1e6,
                floor=statistics.median(floor) * 1e6,
            )
            for name in bare
        ]

    def tables(self) -> tuple[int, float]:
        """Store all pages several times; how many these are, and bytes of tables a page."""
        with SwapStore(self.engine) as store:
            for turn in range(_COPIES):
                store.store(turn * len(self.pages), self.pages)
            count = _COPIES * len(self.pages)
            return count, store.table_bytes / count

    def load(self, rounds: int) -> list[dict[str, Any]]:
        """Load random pages one by one, and take them out."""
        random = np.random.default_rng(2)
        bare: list[float] = []
        more: dict[str, list[float]] = {"load": [], "load, exclusive": []}
        floor: list[float] = []
        with SwapStore(self.engine) as store:
            for _ in range(rounds):
                store.store(0, self.pages)
                # Each goes over all pages in an order of its own before the next: none finds what
                # another has brought to the cache.
                order = random.permutation(len(self.pages)).tolist()
                own = [self.outputs[index] for index in order]
                bare.append(seconds(partial(_each, self.decompress, own)) / len(order))
                floor.append(seconds(partial(_checked, own)) / len(order))
                for name, exclusive in (("load", False), ("load, exclusive", True)):
                    spent = seconds(partial(_load, store, order, exclusive))
                    more[name].append(spent / len(order) - bare[-1])
        return [
            self.row(
                name,
                1,
                bare=statistics.median(bare) * 1e6,
                more=statistics.median(extra) * 1e6,
                floor=statistics.median(floor) * 1e6,
            )
            for name, extra in more.items()
        ]

    def load_many(self, size: int, rounds: int) -> list[dict[str, Any]]:
        """Load random pages in batches of `size`."""
        random = np.random.default_rng(2)
        bare, more, floor = [], [], []
        room, out = np.zeros((size, PAGE), np.uint8), np.zeros((size, PAGE), np.uint8)
        with SwapStore(self.engine) as store:
            store.store(0, self.pages)
            for turn in range(rounds):
                order = random.permutation(len(self.pages))
                for number, at in enumerate(range(0, len(order), size)):
                    indices = order[at : at + size]
                    own = [self.outputs[index] for index in indices.tolist()]
                    batch = batchzip.DecompressBatch(own, room)

                    def load(indices: Any = indices) -> None:
                        store.load_many(indices, out)

                    def decompress(batch: batchzip.DecompressBatch = batch) -> None:
                        self.engine.decompress(batch)

                    base, extra = over(decompress, load, number + turn)
                    bare.append(base / size)
                    more.append(extra / size)
                    floor.append(seconds(partial(_checked, own)) / size)
        values = {"bare": bare, "more": more, "floor": floor}
        us = {name: statistics.median(some) * 1e6 for name, some in values.items()}
        return [self.row("load many", size, **us)]


def _each(call: Callable[[bytes], object], sources: list[bytes]) -> None:
    for source in sources:
        call(source)


def _load(store: SwapStore, order: list[int], exclusive: bool) -> None:
    load = store.load
    if exclusive:
        for index in order:
            load(index, exclusive=True)
    else:
        for index in order:
            load(index)


def _copied(outputs: list[memoryview]) -> float:
    """Seconds of checksums, and of one copy each to a place known before."""
    target = memoryview(bytearray(sum(map(len, outputs))))
    started = time.perf_counter()
    at = 0
    for output in outputs:
        xxh3_64_intdigest(output)
        end = at + len(output)
        target[at:end] = output
        at = end
    return time.perf_counter() - started


def _checked(sources: list[bytes]) -> None:
    for source in sources:
        xxh3_64_intdigest(bytes(memoryview(source)))


def show(rows: list[dict[str, Any]], tables: dict[str, tuple[int, float]]) -> None:
    """Print the rows as a table."""
    table = Table(title="µs a page of 4 KiB, medians")
    headings = ("", "batch", "engine or codec alone", "on top of it", "of which floor", "goal")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        us, operation = row["us"], row["operation"]
        goal = GOALS["store"] if operation.startswith("store") else None
        if row["algorithm"] == "lz4" and operation == "load":
            goal = GOALS["load"]
        cells = (us["bare"], us["more"], us["floor"])
        table.add_row(
            f"{row['algorithm']} {operation}",
            str(row["batch"]),
            *(f"{cell:.2f}" for cell in cells),
            f"{goal:.1f}" if goal else "",
        )
    console().print(table)
    for algorithm, (count, size) in tables.items():
        print(f"{algorithm}: {size:.1f} bytes of tables a page of {count}; goal {GOALS['tables']}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--pages", type=int, default=8192, help="at most so many")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", default="1,8,64,256", help="pages of a batch, with commas")
    parser.add_argument("--algorithms", default=DEFAULT, help="with commas (%(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.batches.split(",")]
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % max(sizes)]
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    print(f"load {os.getloadavg()[0]:.1f}, {len(pages)} pages, {options.rounds} rounds", flush=True)
    rows: list[dict[str, Any]] = []
    tables: dict[str, tuple[int, float]] = {}
    for algorithm in parse_algorithms(options.algorithms):
        bench = Bench(algorithm, pages)
        with bench.engine:
            for size in sizes:
                rows += bench.store(size, options.rounds)
            tables[algorithm.label] = bench.tables()
            rows += bench.load(options.rounds)
            for size in sizes:
                rows += bench.load_many(size, options.rounds)
    show(rows, tables)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "tables": tables}, indent=2))


if __name__ == "__main__":
    main()
