"""Measure the pool: µs per object, memory held per byte stored, and the memory of the process.

    python examples/benchmarks/pool.py [--rounds 15] [--pages 8192] [--batches 8,64,256,1024]
                                       [--largest 10000000] [--json FILE]
                                       [--pid N | --file PATH | --workload KIND]

Objects are pages of a real process, compressed with lz4. Small objects of 32 to 96 bytes show how a
pool scales, because ten million of them fit on a small machine.

speed   `fill` is put_many into a growing pool, with new memory from the system. `drain` frees all
        objects in order and returns the memory. `put` and `free` repeatedly free and replace a
        random batch in a pool of that many objects, whose memory is allocated already. `allocate`
        and `release` are the same calls of the core, with arrays, and without copying.
floor   lower bounds for any pool in Python, measured in the same rounds. `copy` is a loop that only
        copies the same objects to known random places in mapped memory of the same size. `fresh`
        is the system's time to allocate memory for an object's bytes (posix_fallocate and
        MADV_POPULATE_WRITE, 8 pages per call). `return` is its time to free it (MADV_REMOVE, 8
        pages per call).
memory  bytes held ÷ bytes stored, for several numbers of objects: after a fill, after ten rounds in
        which a random half is freed and filled again, and after compaction. For the largest number,
        the memory of the process in smaps is compared with the pool's own figures.

A figure is the median of the batches. `fill` and `drain` are sums, because their batches differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4.block
import numpy as np

from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.pool import Pool
from batchzip.system.segment import Segment
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

GOALS = {"allocate": 0.1, "release": 0.05}
"""µs per object in batches of 256."""

RATIOS = {200: 1.10, 4096: 1.03, 65_536: 1.02}
"""By number of objects: maximum bytes held per byte stored after a fill."""

COMPACTED = 1.03
"""The same after churn and compaction."""

_FILL = 16
_PIECE = 8 * PAGE
_FLOOR_BYTES = 32 << 20
_SMALL = (32, 96)
_GRAIN = 16


class Objects:
    """An endless supply of batches of objects, drawn at random from a list."""

    def __init__(self, name: str, objects: list[bytes]) -> None:
        self.name = name
        self.mean = sum(map(len, objects)) / len(objects)
        self._objects = objects
        self._random = np.random.default_rng(2)

    def batch(self, size: int) -> list[bytes]:
        """Return a batch."""
        return [self._objects[i] for i in self._random.integers(len(self._objects), size=size)]

    def lengths(self, size: int) -> npt.NDArray[np.uint32]:
        """Return the lengths of a batch."""
        return np.array([len(data) for data in self.batch(size)], np.uint32)

    def pick(self, live: int, size: int) -> npt.NDArray[np.int64]:
        """Return different random numbers below `live`."""
        picked = np.unique(self._random.integers(live, size=size + size // 2 + 8))
        return self._random.permutation(picked)[:size]


def small_objects() -> Objects:
    """Return objects of 32 to 96 bytes."""
    sizes = np.random.default_rng(3).integers(*_SMALL, size=4096)
    return Objects("small", [bytes(size) for size in sizes.tolist()])


def fill(pool: Pool, objects: Objects, count: int) -> tuple[npt.NDArray[np.uint64], float]:
    """Put `count` objects into the pool. Return their handles and the seconds."""
    parts, seconds = [], 0.0
    for at in range(0, count, _FILL):
        batch = objects.batch(min(_FILL, count - at))
        started = time.perf_counter()
        parts.append(pool.put_many(batch))
        seconds += time.perf_counter() - started
    return np.concatenate(parts), seconds


def speed(objects: Objects, count: int, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure one number of objects with every batch size, in turns."""
    with Pool() as pool:
        handles, filling = fill(pool, objects, count)
        tables = pool.table_bytes / count
        put: dict[int, list[float]] = {size: [] for size in sizes}
        free: dict[int, list[float]] = {size: [] for size in sizes}
        copy: dict[int, list[float]] = {size: [] for size in sizes}
        allocate: dict[int, list[float]] = {size: [] for size in sizes}
        release: dict[int, list[float]] = {size: [] for size in sizes}
        target = Segment(pool.held_bytes + PAGE, reserve=True)
        target.populate()
        for _, size in itertools.product(range(rounds * 16), sizes):
            rows, batch = objects.pick(count, size), objects.batch(size)
            stale = handles[rows]
            started = time.perf_counter()
            pool.free_many(stale)
            freed = time.perf_counter()
            handles[rows] = pool.put_many(batch)
            done = time.perf_counter()
            free[size].append((freed - started) / size)
            put[size].append((done - freed) / size)
            copy[size].append(_copy(target, batch, objects.pick(target.size - PAGE, size)) / size)
            rows, lengths = objects.pick(count, size), objects.lengths(size)
            stale = handles[rows]
            started = time.perf_counter()
            pool.allocator.free(stale)
            freed = time.perf_counter()
            pool.allocator.allocate(lengths[: len(stale)], stale)
            done = time.perf_counter()
            handles[rows] = stale
            release[size].append((freed - started) / size)
            allocate[size].append((done - freed) / size)
        target.close()
        draining = 0.0
        for at in range(0, count, _FILL):
            part = handles[at : at + _FILL]
            started = time.perf_counter()
            pool.free_many(part)
            draining += time.perf_counter() - started
    return [
        {
            "objects": objects.name,
            "count": count,
            "batch": size,
            "put": statistics.median(put[size]) * 1e6,
            "free": statistics.median(free[size]) * 1e6,
            "copy": statistics.median(copy[size]) * 1e6,
            "allocate": statistics.median(allocate[size]) * 1e6,
            "release": statistics.median(release[size]) * 1e6,
            "fill": filling / count * 1e6,
            "drain": draining / count * 1e6,
            "tables": tables,
        }
        for size in sizes
    ]


def _copy(target: Segment, batch: list[bytes], places: npt.NDArray[np.int64]) -> float:
    """Return the seconds to copy a batch to known places."""
    starts = (places & -_GRAIN).tolist()
    stops = [start + len(data) for start, data in zip(starts, batch, strict=True)]
    memory = target.memory
    started = time.perf_counter()
    for start, stop, data in zip(starts, stops, batch, strict=True):
        memory[start:stop] = data
    return time.perf_counter() - started


def system_floor(rounds: int) -> dict[str, float]:
    """Return the seconds per byte to allocate memory and to free it, in pieces of 8 pages."""
    fresh, back = [], []
    for _ in range(rounds):
        with Segment(_FLOOR_BYTES) as segment:

            def give(at: int, segment: Segment = segment) -> None:
                segment.reserve(at, _PIECE)
                segment.populate(at, _PIECE)

            def take(at: int, segment: Segment = segment) -> None:
                segment.release(at, _PIECE)

            fresh.append(_every_piece(give))
            back.append(_every_piece(take))
    return {"fresh": statistics.median(fresh), "return": statistics.median(back)}


def _every_piece(call: Callable[[int], None]) -> float:
    started = time.perf_counter()
    for at in range(0, _FLOOR_BYTES, _PIECE):
        call(at)
    return (time.perf_counter() - started) / _FLOOR_BYTES


def memory(objects: Objects, count: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the bytes held per byte stored, and the memory of the process at every step."""
    ratios: dict[str, float] = {}
    steps = [process_memory("before", None)]
    with Pool() as pool:

        def note(name: str) -> None:
            ratios[name] = pool.held_bytes / pool.stored_bytes
            steps.append(process_memory(name, pool))

        handles, _ = fill(pool, objects, count)
        note("filled")
        for _ in range(10):
            handles = np.random.default_rng(4).permutation(handles)
            half = count // 2
            pool.free_many(handles[:half])
            handles[:half] = fill(pool, objects, half)[0]
        note("churned")
        _compact(pool)
        note("compacted")
        handles = np.random.default_rng(5).permutation(handles)
        pool.free_many(handles[count // 10 :])
        note("nine tenths freed")
        _compact(pool)
        note("and compacted")
    steps.append(process_memory("closed", None))
    return ratios, steps


def _compact(pool: Pool) -> None:
    left = pool.fragmented_bytes
    while left:
        pool.compact(4096)
        left, before = pool.fragmented_bytes, left
        if left >= before:
            return


def process_memory(name: str, pool: Pool | None) -> dict[str, Any]:
    """Return the memory of this process and of the pool, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return {
        "step": name,
        "rss": sizes["Rss"],
        "shared": sizes.get("Pss_Shmem", sizes["Shared_Dirty"]),
        "held": pool.held_bytes if pool else 0,
        "stored": pool.stored_bytes if pool else 0,
        "tables": pool.table_bytes if pool else 0,
    }


def show(rows: list[dict[str, Any]], floor: dict[str, float], means: dict[str, float]) -> None:
    """Print the speeds."""
    table = Table("µs an object, medians")
    headings = ("", "count", "batch", "put", "copy", "free", "allocate", "release", "fill", "fresh")
    for heading in headings:
        table.add_column(heading, left=not heading)
    for heading in ("drain", "return", "tables, B"):
        table.add_column(heading)
    for row in rows:
        mean = means[row["objects"]]
        cells = (
            row["put"],
            row["copy"],
            row["free"],
            row["allocate"],
            row["release"],
            row["fill"],
            floor["fresh"] * mean * 1e6,
            row["drain"],
            floor["return"] * mean * 1e6,
        )
        table.add_row(
            f"{row['objects']}, {mean:.0f} B",
            f"{row['count']:,}",
            str(row["batch"]),
            *(f"{cell:.2f}" for cell in cells),
            f"{row['tables']:.1f}",
        )
    make_console().print(table)
    print(f"goals, batches of 256: allocate {GOALS['allocate']}, release {GOALS['release']}")


def show_ratios(ratios: dict[int, dict[str, float]]) -> None:
    """Print the memory of pools of several sizes."""
    table = Table("held ÷ stored")
    names = list(next(iter(ratios.values())))
    for heading in ("objects", *names, "goals"):
        table.add_column(heading)
    for count, of in ratios.items():
        cells = (f"{of[name]:.4f}" for name in names)
        table.add_row(f"{count:,}", *cells, f"{RATIOS[count]:.2f}, {COMPACTED:.2f}")
    make_console().print(table)


def show_memory(steps: list[dict[str, Any]]) -> None:
    """Print the memory of the process and of the pool."""
    table = Table("MiB of the process and of the pool")
    for heading in ("", "RSS", "shared", "held", "stored", "tables"):
        table.add_column(heading, left=not heading)
    for step in steps:
        fields = ("rss", "shared", "held", "stored", "tables")
        table.add_row(step["step"], *(f"{step[field] / 2**20:.1f}" for field in fields))
    make_console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_source(parser)
    parser.add_argument("--pages", type=int, default=8192, help="at most so many")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--batches", default="8,64,256,1024", help="objects of a batch, with commas"
    )
    parser.add_argument("--largest", type=int, default=10_000_000, help="most small objects")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.batches.split(",")]
    outputs = [
        lz4.block.compress(page.tobytes(), store_size=False)
        for page in work_pages(source_of(options), options.pages)
    ]
    real = Objects("lz4 pages", [output for output in outputs if len(output) < PAGE])
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs")
    print(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds", flush=True)
    small, rows = small_objects(), []
    for objects, most in ((real, min(100_000, options.largest)), (small, options.largest)):
        count = 10_000
        while count <= most:
            rows += speed(objects, count, sizes, options.rounds)
            count *= 10
    floor = system_floor(options.rounds)
    show(rows, floor, {"lz4 pages": real.mean, "small": small.mean})
    ratios = {}
    for count in RATIOS:
        ratios[count], steps = memory(real, count)
    show_ratios(ratios)
    show_memory(steps)
    if options.json:
        result = {"speed": rows, "floor": floor, "ratios": ratios, "memory": steps}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
