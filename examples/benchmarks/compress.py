"""µs per page of compress and decompress: the bare codec loop, sequential, workers.

    python examples/benchmarks/compress.py [--rounds 15] [--pages 8192] [--json FILE]

On pages of a real process (Python objects, parsed source, JSON text, NumPy arrays), shuffled, without
the same-filled ones. Every contender does all pages once a round, in an order drawn anew each round;
a figure is the median of the rounds. `bare` is a loop of codec calls that throws the outputs away,
for one core; the limit is two cores × bare. `two bare` are two processes with such a loop at once, half
of the pages each: what two cores of this machine really give, which is less than twice one where they
share a physical core. An engine's figure is that of `compress(batch)` or `decompress(batch)` with
descriptors made before, as a user of batches has them.
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
from rich.console import Console
from rich.table import Table

import batchzip
from batchzip.cli.process_memory import ProcessMemory
from batchzip.cli.workload import Workload
from batchzip.codecs import make_codec

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    import numpy.typing as npt

    from batchzip.codecs import Codec

PAGE = 4096
BATCH_SIZES = (8, 64, 256)
_WIDTH = 108

ALGORITHMS: dict[str, dict[str, Any]] = {"lz4": {}, "zstd": {"level": 1}}

GOALS = {
    ("lz4", 8): 0.70,
    ("lz4", 64): 0.87,
    ("lz4", 256): 0.93,
    ("zstd", 8): 0.85,
    ("zstd", 64): 0.93,
    ("zstd", 256): 0.95,
}
"""Least share of the limit that compressing with workers is to reach, on two cores."""


def real_pages(count: int) -> npt.NDArray[np.uint8]:
    """Take `count` pages of a process, shuffled; same-filled ones are no work and left out."""
    with (
        Workload(64) as workload,
        ProcessMemory(workload.pid, page_size=PAGE, chunk_pages=1024) as memory,
    ):
        pages = np.concatenate(list(memory.chunks()))
    words = pages.view(np.uint64)
    pages = pages[(words != words[:, :1]).any(axis=1)]
    np.random.default_rng(1).shuffle(pages)
    return np.ascontiguousarray(pages[:count])


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
        call = calls[operation]
        for source in inputs[operation]:
            call(source)
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


def contenders_for(
    engines: dict[str, batchzip.Engine], pages: npt.NDArray[np.uint8], size: int, twin: Twin
) -> dict[str, dict[str, Callable[[], object]]]:
    """Make what is measured for one codec and batch size, by operation."""
    groups = [pages[at : at + size] for at in range(0, len(pages), size)]
    flat = memoryview(pages.tobytes())
    views = [flat[at : at + PAGE] for at in range(0, len(flat), PAGE)]
    codec = engines["sequential"].codec
    compress, decompress = codec.compressor(PAGE), codec.decompressor(PAGE)
    outputs = [compress(view) for view in views]

    half = len(views) // 2
    work: dict[str, dict[str, Callable[[], object]]] = {}
    for operation, call, sources in (
        ("compress", compress, views),
        ("decompress", decompress, outputs),
    ):
        mine = partial(each, call, sources[:half])
        work[operation] = {
            "bare": partial(each, call, sources),
            "two bare": partial(twin.beside, operation, mine),
        }
    for name, engine in engines.items():
        there = [batchzip.CompressBatch(group) for group in groups]
        back = [
            batchzip.DecompressBatch(outputs[at : at + size], np.empty((size, PAGE), np.uint8))
            for at in range(0, len(outputs), size)
        ]
        work["compress"][name] = partial(each, engine.compress, there)
        work["decompress"][name] = partial(each, engine.decompress, back)
    return work


def twin_for(algorithm: str, parameters: dict[str, Any], pages: npt.NDArray[np.uint8]) -> Twin:
    """Make the twin for the second half of the pages."""
    codec = make_codec(algorithm, **parameters)
    compress = codec.compressor(PAGE)
    half = [page.tobytes() for page in pages[len(pages) // 2 :]]
    return Twin(codec, {"compress": half, "decompress": [compress(page) for page in half]})


def run(pages: npt.NDArray[np.uint8], rounds: int) -> list[dict[str, object]]:
    """Measure everything; a row for each algorithm, operation and batch size."""
    rows: list[dict[str, object]] = []
    for algorithm, parameters in ALGORITHMS.items():
        with (
            contextlib.closing(twin_for(algorithm, parameters, pages)) as twin,
            batchzip.Engine(algorithm, backend="sequential", **parameters) as sequential,
            batchzip.Engine(algorithm, backend="workers", workers=1, **parameters) as workers,
        ):
            workers.wait_ready()
            engines = {"sequential": sequential, "workers": workers}
            for size in BATCH_SIZES:
                for operation, contenders in contenders_for(engines, pages, size, twin).items():
                    seconds = measure(contenders, len(pages), rounds)
                    us = {name: statistics.median(s) * 1e6 for name, s in seconds.items()}
                    rows.append(
                        {
                            "algorithm": algorithm,
                            "operation": operation,
                            "batch": size,
                            "bare_us": us["bare"],
                            "sequential_us": us["sequential"],
                            "workers_us": us["workers"],
                            "sequential_to_bare": us["bare"] / us["sequential"],
                            "workers_to_limit": us["bare"] / us["workers"] / 2,
                            "two_bare_us": us["two bare"],
                            "two_bare_to_limit": us["bare"] / us["two bare"] / 2,
                            "goal": GOALS.get((algorithm, size))
                            if operation == "compress"
                            else None,
                        }
                    )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print the rows as a table."""
    table = Table(title="µs per page of 4 KiB, medians")
    for heading in (
        "",
        "batch",
        "bare",
        "sequential",
        "÷ bare",
        "workers",
        "÷ limit",
        "goal",
        "two bare",
        "÷ limit",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row['algorithm']} {row['operation']}",
            str(row["batch"]),
            *(f"{row[key]:.2f}" for key in ("bare_us", "sequential_us", "sequential_to_bare")),
            *(f"{row[key]:.2f}" for key in ("workers_us", "workers_to_limit")),
            f"{row['goal']:.2f}" if row["goal"] else "",
            *(f"{row[key]:.2f}" for key in ("two_bare_us", "two_bare_to_limit")),
        )
    console = Console()
    if console.width < _WIDTH:  # not a terminal, or a narrow one: figures must not be cut
        console = Console(width=_WIDTH)
    console.print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pages = real_pages(options.pages - options.pages % max(BATCH_SIZES))
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    print(f"{len(pages)} pages, {options.rounds} rounds", flush=True)
    rows = run(pages, options.rounds)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
