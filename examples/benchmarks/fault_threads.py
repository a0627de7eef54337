"""Find out how many fault threads pay, with threads that read random pages of a PagedMemory.

    python examples/benchmarks/fault_threads.py [--fault-threads 1,2,4,8] [--readers 1,4,16]
                                                [--mib 192] [--rounds 3]
                                                [--json FILE | --show FILE]

The memory is three times as large as its budget. Each reading thread reads one word from each of
20,000 random pages, 2,000 per NumPy call, without the GIL. New pages are drawn for each round. The
time per read is the total time divided by the number of reads. It decreases if faults are served
in parallel.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import batchzip
from batchzip.bench.figure import Result
from batchzip.bench.rounds import seconds
from batchzip.bench.script import Script, integers, progress
from batchzip.bench.table import with_spread
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

PAGE = 4096
WORDS = PAGE // 8
SHARE = 3
"""Size of the array ÷ its budget."""
CALLS, IN_CALL = 10, 2000


def touch(array: np.ndarray, seed: int) -> None:
    """Read a word from each of many random pages."""
    rng = np.random.default_rng(seed)
    for _ in range(CALLS):
        rows = rng.integers(0, len(array) // WORDS, IN_CALL) * WORDS
        np.take(array, rows, mode="clip")


def touched(fault_threads: int, readers: int, pages: int) -> float:
    """Return the seconds that `readers` threads take, with a memory of their own."""
    nbytes = pages * PAGE
    with batchzip.PagedMemory(nbytes, nbytes // SHARE, fault_threads=fault_threads) as memory:
        array = memory.array((nbytes // 8,), "i8")
        array[:] = np.repeat(np.random.default_rng(1).integers(0, 1 << 16, nbytes // 32), 4)
        threads = [threading.Thread(target=touch, args=(array, seed)) for seed in range(readers)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--fault-threads", type=integers, default=[1, 2, 4, 8])
    parser.add_argument("--readers", type=integers, default=[1, 4, 16])
    parser.add_argument("--mib", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    pages = (options.mib << 20) // PAGE
    result = Result({"MiB": options.mib, "rounds": options.rounds}, {})
    for readers in options.readers:
        progress(f"{readers} threads that read")
        contenders: dict[str, Callable[[], float]] = {
            f"{count} fault threads": partial(touched, count, readers, pages)
            for count in options.fault_threads
        }
        for name, spent in seconds(contenders, options.rounds).items():
            values = [value / (readers * CALLS * IN_CALL) * 1e6 for value in spent]
            result.add({"benchmark": "fault threads", "readers": readers}, name, "µs", values)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield a table with a row per number of reading threads."""
    table = Table("µs per read of a random page")
    table.add_column("threads that read")
    for name in dict.fromkeys(one.contender for one in result.figures):
        table.add_column(name)
    for readers in result.names("readers"):
        cells = [with_spread(one.spread) for one in result.of(readers=readers)]
        table.add_row(str(readers), *cells)
    yield table


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    SCRIPT.main()
