"""Measure the pool: µs per object, memory held per byte stored, and the memory of the process.

    python examples/benchmarks/pool.py [--rounds 15] [--pages 8192] [--batches 8,64,256,1024]
                                       [--largest 10000000] [--json FILE | --show FILE]
                                       [--pid N | --file PATH | --compile ARGS | --workload KIND]

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

The value of a round is the median of its batches. `fill` and `drain` are sums over all objects,
because their batches differ.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block
import numpy as np

from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, add_source, source_of, work_pages
from batchzip.bench.script import Script, integers, progress
from batchzip.bench.table import with_spread
from batchzip.pool import Pool
from batchzip.system.segment import Segment
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from batchzip.bench.figure import Labels

GOALS = {"allocate": 0.1, "release": 0.05}
"""µs per object in batches of 256."""

RATIOS = {200: 1.10, 4096: 1.03, 65_536: 1.02}
"""By number of objects: maximum bytes held per byte stored after a fill."""

COMPACTED = 1.03
"""The same after churn and compaction."""

US, BYTES, RATIO = "µs per object", "bytes per object", "held ÷ stored"

_BATCHES = 16
"""Batches of each size in a round."""
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


def measure_speed(
    result: Result, objects: Objects, count: int, sizes: list[int], rounds: int
) -> None:
    """Measure one number of objects with every batch size, in turns."""
    labels: Labels = {"benchmark": "pool", "objects": objects.name, "count": count}
    spent: dict[tuple[int, str], list[float]] = {}

    def add(size: int, what: str, seconds: float, number: int) -> None:
        spent.setdefault((size, what), []).append(seconds / number * 1e6)

    with Pool() as pool:
        handles, filling = fill(pool, objects, count)
        result.add(labels, "tables", BYTES, [pool.table_bytes / count])
        target = Segment(pool.held_bytes + PAGE, reserve=True)
        target.populate()
        for _, size in itertools.product(range(rounds * _BATCHES), sizes):
            rows, batch = objects.pick(count, size), objects.batch(size)
            stale = handles[rows]
            started = time.perf_counter()
            pool.free_many(stale)
            freed = time.perf_counter()
            handles[rows] = pool.put_many(batch)
            done = time.perf_counter()
            add(size, "free", freed - started, size)
            add(size, "put", done - freed, size)
            places = objects.pick(target.size - PAGE, size)
            add(size, "copy", _copy(target, batch, places), size)
            rows, lengths = objects.pick(count, size), objects.lengths(size)
            stale = handles[rows]
            started = time.perf_counter()
            pool.allocator.free(stale)
            freed = time.perf_counter()
            pool.allocator.allocate(lengths[: len(stale)], stale)
            done = time.perf_counter()
            handles[rows] = stale
            add(size, "release", freed - started, size)
            add(size, "allocate", done - freed, size)
        target.close()
        draining = 0.0
        for at in range(0, count, _FILL):
            part = handles[at : at + _FILL]
            started = time.perf_counter()
            pool.free_many(part)
            draining += time.perf_counter() - started
    result.add(labels, "fill", US, [filling / count * 1e6])
    result.add(labels, "drain", US, [draining / count * 1e6])
    for (size, what), values in spent.items():
        medians = np.median(np.reshape(values, (rounds, _BATCHES)), axis=1)
        result.add({**labels, "batch": size}, what, US, medians.tolist())


def _copy(target: Segment, batch: list[bytes], places: npt.NDArray[np.int64]) -> float:
    """Return the seconds to copy a batch to known places."""
    starts = (places & -_GRAIN).tolist()
    stops = [start + len(data) for start, data in zip(starts, batch, strict=True)]
    memory = target.memory
    started = time.perf_counter()
    for start, stop, data in zip(starts, stops, batch, strict=True):
        memory[start:stop] = data
    return time.perf_counter() - started


def measure_system(result: Result, rounds: int) -> None:
    """Measure how long the system takes to allocate memory and to free it, in pieces of 8 pages."""
    spent: dict[str, list[float]] = {"fresh": [], "return": []}
    for _ in range(rounds):
        with Segment(_FLOOR_BYTES) as segment:

            def give(at: int, segment: Segment = segment) -> None:
                segment.reserve(at, _PIECE)
                segment.populate(at, _PIECE)

            def take(at: int, segment: Segment = segment) -> None:
                segment.release(at, _PIECE)

            spent["fresh"].append(_every_piece(give) * 1e9)
            spent["return"].append(_every_piece(take) * 1e9)
    for what, values in spent.items():
        result.add({"benchmark": "pool", "system": "memory"}, what, "ns per byte", values)


def _every_piece(call: Callable[[int], None]) -> float:
    started = time.perf_counter()
    for at in range(0, _FLOOR_BYTES, _PIECE):
        call(at)
    return (time.perf_counter() - started) / _FLOOR_BYTES


def measure_memory(result: Result, objects: Objects, count: int) -> None:
    """Measure the bytes held per byte stored, and the memory of the process, at every step."""
    labels: Labels = {"benchmark": "pool", "memory of": count}
    with Pool() as pool:

        def note(step: str) -> None:
            where = {**labels, "step": step}
            result.add(where, "pool", RATIO, [pool.held_bytes / pool.stored_bytes])
            for name, value in process_memory(pool).items():
                result.add(where, name, "MiB", [value / 2**20])

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
        note("compacted again")


def _compact(pool: Pool) -> None:
    left = pool.fragmented_bytes
    while left:
        pool.compact(4096)
        left, before = pool.fragmented_bytes, left
        if left >= before:
            return


def process_memory(pool: Pool) -> dict[str, int]:
    """Return the memory of this process and of the pool, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return {
        "RSS": sizes["Rss"],
        "shared": sizes.get("Pss_Shmem", sizes["Shared_Dirty"]),
        "held": pool.held_bytes,
        "stored": pool.stored_bytes,
        "tables": pool.table_bytes,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_source(parser)
    parser.add_argument("--pages", type=int, default=8192, help="at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--batches", type=integers, default=[8, 64, 256, 1024], help="objects, with commas"
    )
    parser.add_argument("--largest", type=int, default=10_000_000, help="most small objects")


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    outputs = [
        lz4.block.compress(page.tobytes(), store_size=False)
        for page in work_pages(source_of(options), options.pages)
    ]
    real = Objects("lz4 pages", [output for output in outputs if len(output) < PAGE])
    small = small_objects()
    means = {one.name: round(one.mean) for one in (real, small)}
    settings = {"source": source_of(options).name, "rounds": options.rounds, "bytes": means}
    result = Result(settings, {"pool": "copy"})
    for objects, most in ((real, min(100_000, options.largest)), (small, options.largest)):
        count = 10_000
        while count <= most:
            progress(f"{objects.name}, {count:,}")
            measure_speed(result, objects, count, options.batches, options.rounds)
            count *= 10
    measure_system(result, options.rounds)
    for count in RATIOS:
        progress(f"memory of {count:,} objects")
        measure_memory(result, real, count)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield the speeds, the memory of pools of several sizes, and that of the process."""
    floor = {one.contender: one.median for one in result.of(system="memory")}
    calls = ("put", "copy", "free", "allocate", "release")
    table = Table("µs per object, in batches")
    for place, heading in enumerate(("objects", "count", "batch", *calls)):
        table.add_column(heading, left=not place)
    others = Table("µs per object to fill and to drain a pool, and bytes of tables per object")
    for heading in ("objects", "count", "fill", "fresh", "drain", "return", "tables, bytes"):
        others.add_column(heading)
    for objects in result.names("objects"):
        mean = result.settings["bytes"][objects]
        name = f"{objects}, {mean} bytes"
        for count in result.names("count", objects=objects):
            for batch in result.names("batch", objects=objects, count=count):
                found = result.of(objects=objects, count=count, batch=batch)
                of = {one.contender: one.spread for one in found}
                cells = (with_spread(of[call]) for call in calls)
                table.add_row(name, f"{count:,}", str(batch), *cells)
            table.add_section()
            of = {one.contender: one.spread for one in result.of(objects=objects, count=count)}
            others.add_row(
                name,
                f"{count:,}",
                f"{of['fill'].median:.2f}",
                f"{floor['fresh'] * mean / 1e3:.2f}",
                f"{of['drain'].median:.2f}",
                f"{floor['return'] * mean / 1e3:.2f}",
                f"{of['tables'].median:.1f}",
            )
    yield table
    yield others
    yield from _memory_tables(result)


def _memory_tables(result: Result) -> Iterator[Table]:
    steps = result.names("step")
    table = Table("held ÷ stored; in brackets, the goal")
    table.add_column("objects")
    for step in steps:
        table.add_column(str(step))
    counts = [int(count) for count in result.names("memory of")]
    for count in counts:
        of = {
            one.labels["step"]: one.median
            for one in result.of(**{"memory of": count})
            if one.quantity == RATIO
        }
        goals = {"filled": RATIOS.get(count), "compacted": COMPACTED}
        cells = []
        for step in steps:
            goal = goals.get(str(step))
            cells.append(f"{of[step]:.4f}" + ("" if goal is None else f" ({goal:.2f})"))
        table.add_row(f"{count:,}", *cells)
    yield table
    table = Table(f"MiB of the process and of the pool, {max(counts):,} objects")
    names = ("RSS", "shared", "held", "stored", "tables")
    for heading in ("", *names):
        table.add_column(heading)
    for step in steps:
        found = result.of(**{"memory of": max(counts)}, step=step)
        sizes = {one.contender: one.median for one in found}
        table.add_row(str(step), *(f"{sizes[name]:.1f}" for name in names))
    yield table


def goals(result: Result) -> Iterator[str]:
    """Yield a line per goal of the calls of the core, and whether it is reached."""
    for one in result.of(batch=256):
        if one.contender in GOALS:
            most = GOALS[one.contender]
            what = f"{one.labels['objects']}, {one.labels['count']:,}, {one.contender}"
            verdict = "reached" if one.median <= most else "missed"
            yield f"{what}: {one.median:.3f} µs per object, at most {most:g}: {verdict}"


SCRIPT = Script(__doc__, add_options, measure, tables, goals)

if __name__ == "__main__":
    SCRIPT.main()
