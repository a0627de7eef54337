"""Compute on an array three times as large as its RAM budget, with ordinary NumPy code.

    .venv/bin/python examples/paged_array.py

RSS is the resident memory of this process. It includes uncompressed and compressed pages.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

import batchzip

BUDGET = 32 << 20
ROWS = 3 * BUDGET // 8


def show(what: str, memory: batchzip.PagedMemory) -> None:
    """Print a line with the memory in use after a step."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    now = memory.statistics
    print(
        f"{what:24} RSS {rss >> 20:4} MiB, resident {now.resident_bytes >> 20:3} MiB, "
        f"compressed {now.compressed_bytes >> 20:3} MiB, faults {now.faults_missing:7,}"
    )


# --8<-- [start:compute]
def compute() -> None:
    """Fill, scan, sort and search an array of 96 MiB in 32 MiB."""
    with batchzip.PagedMemory(size=4 * BUDGET, budget=BUDGET, algorithm="lz4") as memory:
        show("at first", memory)
        readings = memory.array(ROWS)  # an ordinary array
        random = np.random.default_rng(1)
        for start in range(0, ROWS, 1 << 18):
            part = readings[start : start + (1 << 18)]
            part[:] = random.integers(0, 10_000, len(part)) / 100
        show("filled", memory)

        memory.advise(readings, "sequential")
        mean = readings.mean()
        show(f"mean {mean:.4f}", memory)

        readings.sort()  # in place
        show("sorted", memory)

        median = readings[ROWS // 2]
        show(f"median {median:.2f}", memory)
        memory.evict(readings)
        show("evicted", memory)
        assert np.searchsorted(readings, median) <= ROWS // 2
        show("searched", memory)

        took = memory.statistics
        p50_us, p99_us = took.latency_p50_s * 1e6, took.latency_p99_s * 1e6
        print(f"faults took {p50_us:.0f} µs (p50), {p99_us:.0f} µs (p99)")


# --8<-- [end:compute]


if __name__ == "__main__":
    ways = batchzip.paged.available()
    print(ways)
    if ways:
        compute()
