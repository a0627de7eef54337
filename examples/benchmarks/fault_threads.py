"""Find out how many fault threads pay, with threads that touch random pages of a PagedMemory.

    python examples/benchmarks/fault_threads.py [--fault-threads 1,2,4,8] [--touchers 1,4,16]
                                                [--mib 192] [--rounds 3]

The memory is three times as large as its budget. Each touching thread reads one word from each of
20,000 random pages, 2,000 per NumPy call, without the GIL. New pages are drawn for each round. The
time per touch is the total time divided by the number of touches. It decreases if faults are served
in parallel.
"""

from __future__ import annotations

import argparse
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import batchzip
from batchzip.bench.figure import describe_machine
from batchzip.bench.rounds import seconds, spread
from batchzip.bench.table import spread_percent
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

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


def touched(fault_threads: int, touchers: int, pages: int) -> float:
    """Return the seconds that `touchers` threads take, with a memory of their own."""
    nbytes = pages * PAGE
    with batchzip.PagedMemory(nbytes, nbytes // SHARE, fault_threads=fault_threads) as memory:
        array = memory.array((nbytes // 8,), "i8")
        array[:] = np.repeat(np.random.default_rng(1).integers(0, 1 << 16, nbytes // 32), 4)
        threads = [threading.Thread(target=touch, args=(array, seed)) for seed in range(touchers)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun


def numbers(text: str) -> list[int]:
    """Parse comma-separated numbers."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fault-threads", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--touchers", type=numbers, default=[1, 4, 16])
    parser.add_argument("--mib", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pages = (options.mib << 20) // PAGE
    machine = describe_machine()
    print(f"{machine['platform']}, {machine['processor']}, {machine['cpus']} CPUs")
    table = Table("µs a touch, medians ± half the quartiles' distance in %")
    table.add_column("threads that touch")
    for count in options.fault_threads:
        table.add_column(f"{count} fault thread{'s' * (count > 1)}")
    for touchers in options.touchers:
        contenders: dict[str, Callable[[], float]] = {
            str(count): partial(touched, count, touchers, pages) for count in options.fault_threads
        }
        cells = []
        for spent in seconds(contenders, options.rounds).values():
            found = spread([value / (touchers * CALLS * IN_CALL) * 1e6 for value in spent])
            cells.append(f"{found.median:.2f} ±{spread_percent(found):.0f}")
        table.add_row(str(touchers), *cells)
    make_console().print(table)


if __name__ == "__main__":
    main()
