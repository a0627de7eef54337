"""µs per page of compress and decompress: the bare codec loop, sequential, workers.

    python examples/benchmarks/compress.py [--rounds 15] [--pages 8192] [--batches 8,64,256]
                                           [--algorithms lz4,zstd] [--json FILE]
                                           [--pid N | --file PATH | --workload KIND]

On pages of a real process (Python objects, parsed source, JSON text, NumPy arrays) or of one's own, shuffled,
without the same-filled ones. Every contender does all pages once a round, in an order drawn anew each round;
a figure is the median of the rounds.

`bare` is a loop of codec calls that throws the outputs away, on one core; the limit is two cores × bare.
`two bare` are two processes with such a loop at once, half of the pages each: what two cores of this
machine really give, which is less than twice one where they share a physical core. `sequential` and
`workers` are the engine with one of these backends, two lanes in the latter: the caller and a worker.
`arena` is the latter with pages and outputs in the engine's arena, so that nothing is copied. An
engine's figure is that of `compress(batch)` with one descriptor that is refilled, as a store does and
as zswap's per-CPU buffers are used, and of `decompress(batch)` with descriptors made before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loky.backend import get_context
from rich.table import Table

import batchzip
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.table import console
from batchzip.codecs import make_codec

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from batchzip.buffers import Bytes
    from batchzip.codecs import Codec

OUTPUT_BYTES = PAGE + 64
"""Room for an output in the arena: what does not compress is the caller's to keep as it is."""

ALGORITHMS: dict[str, dict[str, Any]] = {"lz4": {}, "zstd": {"level": 1}}

GOALS = {
    ("lz4", "compress", 8): 0.70,
    ("lz4", "compress", 64): 0.87,
    ("lz4", "compress", 256): 0.93,
    ("lz4", "decompress", 256): 0.85,
    ("zstd", "compress", 8): 0.85,
    ("zstd", "compress", 64): 0.93,
    ("zstd", "compress", 256): 0.95,
    ("zstd", "decompress", 256): 0.85,
}
"""Least share of the limit that workers are to reach, on two cores."""

CONTENDERS = ("bare", "two bare", "sequential", "workers", "arena")


class Twin:
    """A process that runs a bare loop over its half of the inputs whenever it is told to."""

    def __init__(self, codec: Codec, inputs: dict[str, list[bytes]]) -> None:
        context = get_context("loky")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_twin, args=(there, codec, inputs), daemon=True)
        self._process.start()
        there.close()

    def beside(self, operation: str, work: Callable[[], object]) -> None:
        """Do `work` here while the twin does its half there; returns when both are done."""
        self._here.send(operation)
        work()
        self._here.recv()

    def close(self) -> None:
        """End the process."""
        self._here.send(None)
        self._process.join()
        self._here.close()


def _twin(pipe: Connection, codec: Codec, inputs: dict[str, list[bytes]]) -> None:
    calls = {"compress": codec.compressor(PAGE), "decompress": codec.decompressor(PAGE)}
    while (operation := pipe.recv()) is not None:
        each(calls[operation], inputs[operation])
        pipe.send(True)


def each(call: Callable[[Any], object], sources: list[Any]) -> None:
    """Call with each source, and nothing else: the bare loop."""
    for source in sources:
        call(source)


def measure(
    contenders: dict[str, Callable[[], object]], pages: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds per page of each contender in each round, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name in random.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contenders[name]()
            if turn:  # the first round only warms up
                seconds[name].append((time.perf_counter() - started) / pages)
    return seconds


def refilled(engine: batchzip.Engine, pages: Bytes, size: int, dsts: Bytes | None) -> None:
    """Compress all pages in batches of `size`, with one descriptor."""
    batch = batchzip.CompressBatch(pages[:size], dsts=dsts)
    for at in range(0, len(pages), size):
        batch.refill(pages[at : at + size])
        engine.compress(batch)


def restored(
    engine: batchzip.Engine, outputs: list[bytes], size: int, room: Bytes
) -> Callable[[], object]:
    """Make a decompression of all outputs in batches of `size`, always to the same pages."""
    batches = [
        batchzip.DecompressBatch(outputs[at : at + size], room)
        for at in range(0, len(outputs), size)
    ]
    return partial(each, engine.decompress, batches)


class Bench:
    """One algorithm's contenders, ready to be measured at any batch size."""

    def __init__(self, algorithm: str, pages: Bytes) -> None:
        parameters = ALGORITHMS[algorithm]
        self.pages = pages
        self._stack = contextlib.ExitStack()
        codec = make_codec(algorithm, **parameters)
        self._calls = {"compress": codec.compressor(PAGE), "decompress": codec.decompressor(PAGE)}
        flat = memoryview(pages.tobytes())
        views = [flat[at : at + PAGE] for at in range(0, len(flat), PAGE)]
        self._outputs = [self._calls["compress"](view) for view in views]
        self._inputs: dict[str, list[Any]] = {"compress": views, "decompress": self._outputs}
        half = len(pages) // 2
        there = {name: [bytes(one) for one in some[half:]] for name, some in self._inputs.items()}
        self._twin = self._stack.enter_context(contextlib.closing(Twin(codec, there)))
        self._engines = {
            name: self._stack.enter_context(
                batchzip.Engine(algorithm, backend=name, workers=1, **parameters)
            )
            for name in ("sequential", "workers")
        }
        self._engines["workers"].wait_ready()
        self._shared = self._engines["workers"].arena(len(pages))
        self._shared[:] = pages

    def contenders(self, operation: str, size: int) -> dict[str, Callable[[], object]]:
        """Make what is measured, in the order of CONTENDERS."""
        call, inputs = self._calls[operation], self._inputs[operation]
        mine = partial(each, call, inputs[: len(inputs) // 2])
        sequential, workers = self._engines["sequential"], self._engines["workers"]
        bare: list[Callable[[], object]] = [
            partial(each, call, inputs),
            partial(self._twin.beside, operation, mine),
        ]
        if operation == "compress":
            dsts = workers.arena(size, OUTPUT_BYTES)
            engines: list[Callable[[], object]] = [
                partial(refilled, sequential, self.pages, size, None),
                partial(refilled, workers, self.pages, size, None),
                partial(refilled, workers, self._shared, size, dsts),
            ]
        else:
            room = np.zeros((size, PAGE), np.uint8)
            engines = [
                restored(sequential, self._outputs, size, room),
                restored(workers, self._outputs, size, room),
                restored(workers, self._outputs, size, workers.arena(size)),
            ]
        return dict(zip(CONTENDERS, bare + engines, strict=True))

    def close(self) -> None:
        """End the engines and the twin."""
        self._stack.close()


def run(pages: Bytes, algorithms: list[str], sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure everything; a row for each algorithm, operation and batch size."""
    rows: list[dict[str, Any]] = []
    for algorithm in algorithms:
        with contextlib.closing(Bench(algorithm, pages)) as bench:
            for operation in ("compress", "decompress"):
                for size in sizes:
                    seconds = measure(bench.contenders(operation, size), len(pages), rounds)
                    us = {name: statistics.median(s) * 1e6 for name, s in seconds.items()}
                    rows.append(
                        {
                            "algorithm": algorithm,
                            "operation": operation,
                            "batch": size,
                            "us": us,
                            "goal": GOALS.get((algorithm, operation, size)),
                        }
                    )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(title="µs per page of 4 KiB, medians; the limit is two cores × bare")
    for heading in ("", "batch", "bare", "two bare", "÷ limit", "sequential", "÷ bare"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("workers", "÷ limit", "arena", "÷ limit", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        us, cells = row["us"], []
        for name in CONTENDERS:
            lanes = 1 if name in {"bare", "sequential"} else 2
            cells.append(f"{us[name]:.2f}")
            cells.append(f"{us['bare'] / us[name] / lanes:.2f}")
        del cells[1]
        goal = f"{row['goal']:.2f}" if row["goal"] else ""
        table.add_row(f"{row['algorithm']} {row['operation']}", str(row["batch"]), *cells, goal)
    console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--batches", default="8,64,256", help="pages of a batch, with commas")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="with commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.batches.split(",")]
    pages = work_pages(source_of(options), options.pages)
    pages = pages[: len(pages) - len(pages) % max(sizes)]
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    print(f"{len(pages)} pages, {options.rounds} rounds", flush=True)
    rows = run(pages, options.algorithms.split(","), sizes, options.rounds)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
