"""The measured process of paged.py: do one job with one contender and print the results as JSON.

The process first imports everything and reports that it is ready. Then the program moves it into
its memory group and sends the job. Pages to write come from a file in memory that is charged to the
program, not to the group.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import sys
import threading
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import batchzip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Make = Callable[[int | tuple[int, ...], str], NDArray[Any]]
    """Makes an array of a shape and a dtype."""

PAGE = 4096
CHUNK = 1 << 20
ROW_PAGES = 17
"""Pages per row of the strided scan: more than the largest page of PagedMemory, so that no page
serves two touches."""
COLUMNS = 4
THREADS = 4
PIECE = 256
MOST_S = 5.0
"""Time limit of random touches, in seconds: a file on a slow disk would take minutes."""
PERCENTS = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95)


@contextlib.contextmanager
def contender(name: str, nbytes: int, budget: int, folder: str) -> Iterator[Make]:
    """Yield a function that makes arrays of up to `nbytes`, of which `budget` may be resident."""
    if name == "memmap":
        with TemporaryDirectory(prefix="batchzip-", dir=folder) as made:
            yield lambda shape, dtype: np.memmap(
                Path(made) / os.urandom(8).hex(), dtype, "w+", shape=shape
            )
    elif name.startswith("paged"):
        page_size = int(name.split()[1]) << 10
        with batchzip.PagedMemory(nbytes, budget, page_size=page_size) as memory:
            yield memory.array
    else:
        yield _anonymous


def _anonymous(shape: int | tuple[int, ...], dtype: str) -> NDArray[Any]:
    count = int(np.prod(shape))
    nbytes = count * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, count).reshape(shape)


class Clock:
    """A running measurement of `count` operations."""

    def __init__(self, count: float) -> None:
        self.count = count
        self.started = time.perf_counter()
        self.cpu = _cpu_s()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started


class Found:
    """The measurements, and a digest of the results."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.digest = 0

    @contextlib.contextmanager
    def timed(self, name: str, count: float = 1) -> Iterator[Clock]:
        """Measure the body in µs per operation, of which there are `count`. The body may set it."""
        clock = Clock(count)
        yield clock
        spent, cpu = clock.elapsed(), _cpu_s() - clock.cpu
        self.figures[f"{name}: time"] = spent / clock.count * 1e6
        self.figures[f"{name}: CPU"] = cpu / clock.count * 1e6

    def add(self, result: Any) -> None:
        """Add a result to the digest, which must be the same for all contenders."""
        number = int(np.asarray(result).astype(np.int64).sum())
        self.digest = (self.digest * 31 + number) % (1 << 61)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# Touches.


def touches(make: Make, nbytes: int, source: NDArray[np.uint8], found: Found) -> None:
    """Fill an array with pages and touch them in every way."""
    array = make(nbytes, "u1")
    pages = nbytes // PAGE
    chunks = range(0, nbytes, CHUNK)
    with found.timed("fill", pages):
        for at in chunks:
            array[at : at + CHUNK] = _chunk(source, at)
    words = array.view("u8")
    for name in ("scan", "scan again"):
        sums = []
        with found.timed(name, pages):
            for at in chunks:
                sums.append(words[at // 8 : (at + CHUNK) // 8].sum())  # noqa: PERF401 - as steps
        _compare(sums, source, chunks)
    row = ROW_PAGES * PAGE
    with found.timed("strided scan", COLUMNS * len(range(0, nbytes, row))):
        for column in range(COLUMNS):
            found.add(array[column * PAGE * (ROW_PAGES // COLUMNS) :: row].max())
    rng = np.random.default_rng(5)
    count = pages // 2
    view = array.data
    if isinstance(array, np.memmap):  # otherwise each touch would cause readahead
        mapped: Any = array
        mapped._mmap.madvise(mmap.MADV_RANDOM)  # noqa: SLF001 - there is no public way
    for name, touch in (("random read", _read), ("random write", _write)):
        taken: list[int] = []
        parts = rng.integers(0, nbytes, (-(-count // PIECE), PIECE)).tolist()
        with found.timed(name) as clock:
            for part in parts:
                touch(view, part, taken)
                if clock.elapsed() > MOST_S:
                    break
            clock.count = len(taken)
        found.figures[f"{name}: time"] = sum(taken) / len(taken) / 1e3
        _spread(found, name, taken)
    places = rng.integers(0, nbytes, (THREADS, -(-count // PIECE), PIECE))
    with found.timed(f"{THREADS} threads") as clock:
        clock.count = _at_once(array, places, clock)
    _compare([words[at // 8 : (at + CHUNK) // 8].sum() for at in chunks], source, chunks)


def _chunk(source: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """Return the bytes for a place: the source repeated, each time from another page on."""
    around, within = divmod(at, len(source))
    start = (within + around * PAGE * 37) % len(source)
    part = source[start : start + CHUNK]
    return part if len(part) == CHUNK else np.concatenate([part, source[: CHUNK - len(part)]])


def _compare(sums: list[Any], source: NDArray[np.uint8], chunks: range) -> None:
    for at, total in zip(chunks, sums, strict=True):
        if total != _chunk(source, at).view("u8").sum():
            raise SystemExit(f"the bytes read at {at} differ from those written")


def _read(view: memoryview, places: list[int], taken: list[int]) -> None:
    clock = time.perf_counter_ns
    for place in places:
        begun = clock()
        view[place]
        taken.append(clock() - begun)


def _write(view: memoryview, places: list[int], taken: list[int]) -> None:
    """Write the values that are there already, which the kernel cannot know."""
    clock = time.perf_counter_ns
    for place in places:
        begun = clock()
        view[place] = view[place]
        taken.append(clock() - begun)


def _spread(found: Found, name: str, taken: list[int]) -> None:
    for percent, value in zip(PERCENTS, np.percentile(taken, PERCENTS), strict=True):
        found.figures[f"{name}: p{percent:g}"] = float(value) / 1e3


def _at_once(array: NDArray[np.uint8], places: NDArray[np.int64], clock: Clock) -> int:
    """Let a thread per row of `places` read there. Return the number of reads."""
    done = [0] * len(places)

    def read(thread: int) -> None:
        for part in places[thread]:
            array.take(part)
            done[thread] += len(part)
            if clock.elapsed() > MOST_S:
                return

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


# Workloads.


def sort(make: Make, nbytes: int, found: Found) -> None:
    """Sort whole numbers below a million in place."""
    array = make(nbytes // 8, "i8")
    rng = np.random.default_rng(6)
    step = CHUNK // 8
    for at in range(0, len(array), step):
        part = array[at : at + step]
        part[:] = rng.integers(0, 1_000_000, len(part))
    with found.timed("sort", 1e6):
        array.sort()
    for at in range(0, len(array), step):
        part = array[at : at + step]
        assert (part[1:] >= part[:-1]).all()
        found.add(part)


def k_means(make: Make, nbytes: int, found: Found) -> None:
    """Find clusters of points (counts of words, most of them 0) in three iterations."""
    dimensions, clusters, step = 16, 16, 1 << 14
    points = make((nbytes // dimensions // 4, dimensions), "f4")
    rng = np.random.default_rng(7)
    counts = np.array([0] * 11 + [1, 1, 1, 2, 5], "f4")
    for at in range(0, len(points), step):
        part = points[at : at + step]
        part[:] = counts[rng.integers(0, len(counts), part.shape, "u1")]
    centres = points[:: len(points) // clusters][:clusters].copy()
    with found.timed("k-means", 1e6):
        for _ in range(3):
            sums, sizes = np.zeros((clusters, dimensions)), np.zeros(clusters)
            for at in range(0, len(points), step):
                part = points[at : at + step]
                nearest = (part @ centres.T - (centres**2).sum(1) / 2).argmax(1)
                one_hot = nearest[:, None] == np.arange(clusters)
                sums += one_hot.T.astype("f4") @ part
                sizes += one_hot.sum(0)
            centres = (sums / np.maximum(sizes, 1)[:, None]).astype("f4")
    found.add(sizes)


def group_by(make: Make, nbytes: int, found: Found) -> None:
    """Sum and count the values of a pandas frame by key, piece by piece."""
    count, step = nbytes // 16, 1 << 18
    keys, values = make(count, "i8"), make(count, "i8")
    rng = np.random.default_rng(8)
    for at in range(0, count, step):
        part = keys[at : at + step]
        part[:] = rng.geometric(0.001, len(part))
        values[at : at + step] = rng.integers(0, 1000, len(part))
    frame = pd.DataFrame({"key": keys, "value": values}, copy=False)
    assert np.shares_memory(frame["value"].to_numpy(), values)
    with found.timed("group-by", 1e6):
        parts = [
            frame.iloc[at : at + step].groupby("key")["value"].agg(["sum", "count"])
            for at in range(0, count, step)
        ]
        total = pd.concat(parts).groupby(level=0).sum()
    found.add(total["sum"].to_numpy())
    found.add(total["count"].to_numpy())


def matrix_product(make: Make, nbytes: int, found: Found) -> None:
    """Multiply two matrices of small whole numbers, block by block."""
    block = int((nbytes / 3 / 8) ** 0.5) // 4
    side = 4 * block
    a, b, c = (make((side, side), "f8") for _ in range(3))
    rng = np.random.default_rng(9)
    for matrix in (a, b):
        for row in range(0, side, block):
            matrix[row : row + block] = rng.integers(0, 8, (block, side))
    pieces = [slice(at, at + block) for at in range(0, side, block)]
    with found.timed("matrix product", 1e6):
        for i in pieces:
            for j in pieces:
                for k in pieces:
                    c[i, j] += a[i, k] @ b[k, j]
    for i in pieces:
        found.add(c[i])


WORKLOADS: dict[str, Callable[[Make, int, Found], None]] = {
    "sort": sort,
    "k-means": k_means,
    "group-by": group_by,
    "matrix product": matrix_product,
}


def main() -> None:
    """Run the job that the input names."""
    warnings.simplefilter("error")
    print("ready", flush=True)
    job = json.loads(sys.stdin.readline())
    found = Found()
    nbytes = job["nbytes"]
    with contender(job["contender"], nbytes + job["slack"], job["budget"], job["folder"]) as make:
        if job["work"] == "touches":
            source = np.frombuffer(mmap.mmap(job["source"], 0, prot=mmap.PROT_READ), np.uint8)
            touches(make, nbytes, source, found)
        else:
            WORKLOADS[job["work"]](make, nbytes, found)
    print(json.dumps({"figures": found.figures, "digest": found.digest}))


if __name__ == "__main__":
    main()
