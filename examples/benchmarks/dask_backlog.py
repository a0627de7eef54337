"""Measure small batches on a Dask cluster: their cost, and the memory that a backlog takes.

    python examples/benchmarks/dask_backlog.py [--batches 10000] [--pages 16] [--workers 2]
                                               [--rounds 5] [--json FILE | --show FILE]

The first part compares bare Dask tasks with batches of `DaskBackend(local="never")` of the same
size, in interleaved rounds. 1, 16 or 256 of them are in flight at once. The second part submits
--batches batches at once. Each second the number of batches left and the memory (RSS) of the client
and the scheduler are recorded.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import distributed
from distributed import Client

import batchzip
from batchzip.bench.figure import Result
from batchzip.bench.pages import PAGE, Source, work_pages
from batchzip.bench.script import Script, progress
from batchzip.bench.table import with_spread
from batchzip.terminal.table import Table
from batchzip_dask import DaskBackend

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from batchzip.bench.figure import Labels
    from batchzip.bench.pages import Pages
    from batchzip.request import Request

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3). Freed batches are then returned to the system, so that RSS shows
only live memory."""


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[Client]:
    """Start Dask's own commands, in one process each."""
    with contextlib.ExitStack() as stack:
        file = f"{stack.enter_context(tempfile.TemporaryDirectory())}/scheduler.json"
        words = "--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"
        commands: list[tuple[str, ...]] = [("scheduler", "--port", "0", *words)]
        commands += [("worker", "--nthreads", "1", "--no-nanny", *words)] * workers
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command], stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        client = stack.enter_context(Client(scheduler_file=file, set_as_default=False))
        client.wait_for_workers(workers)
        yield client


def _ms(begin: Callable[[], Callable[[], object]], count: int) -> float:
    """Start `count` operations and wait for all. Return the milliseconds per operation."""
    began = time.perf_counter()
    for wait in [begin() for _ in range(count)]:
        wait()
    return (time.perf_counter() - began) * 1e3 / count


def compare(result: Result, client: Client, pages: Pages, rounds: int) -> None:
    """Measure bare tasks and batches."""

    def task() -> Callable[[], object]:
        return client.submit(len, pages.tobytes(), pure=False).result

    def batch() -> Callable[[], object]:
        return engine.submit(batchzip.CompressBatch(pages)).wait

    with batchzip.Engine("lz4", backend=DaskBackend(client, local="never")) as engine:
        _ms(task, 16)
        _ms(batch, 16)
        for count in (1, 16, 256):
            taken = [(_ms(task, count), _ms(batch, count)) for _ in range(rounds)]
            labels: Labels = {"benchmark": "backlog", "in flight": count}
            for name, values in zip((TASK, BATCH), zip(*taken, strict=True), strict=True):
                result.add(labels, name, MS, values)


def flood(result: Result, client: Client, pages: Pages, batches: int) -> None:
    """Submit `batches` batches at once, and record their progress."""
    scheduler = client.run_on_scheduler(os.getpid)
    done = failed = 0
    submitted_s = 0.0
    over = threading.Event()

    def count(request: Request[batchzip.CompressBatch]) -> None:
        nonlocal done, failed
        failed += request.batch.has_errors
        done += 1
        if done == batches:
            over.set()

    def submit() -> None:
        nonlocal submitted_s
        for _ in range(batches):
            engine.submit(batchzip.CompressBatch(pages)).add_done_callback(count)
        submitted_s = time.monotonic() - began

    with batchzip.Engine("zstd", level=1, backend=DaskBackend(client, local="never")) as engine:
        engine.compress(batchzip.CompressBatch(pages))
        began = time.monotonic()
        submitting = threading.Thread(target=submit)
        submitting.start()
        for second in itertools.count(1):
            ended = over.wait(1)
            labels: Labels = {"benchmark": "backlog", "second": second}
            result.add(labels, CLIENT, MIB, [_rss_mib(os.getpid())])
            result.add(labels, SCHEDULER, MIB, [_rss_mib(scheduler)])
            result.add(labels, BATCH, LEFT, [batches - done])
            if ended:
                break
        submitting.join()
        labels = {"benchmark": "backlog"}
        result.add(labels, BATCH, "all submitted, s", [submitted_s])
        result.add(labels, BATCH, "all done, s", [time.monotonic() - began])
        result.add(labels, BATCH, "failed", [failed])


TASK, BATCH, CLIENT, SCHEDULER = "bare task", "batch", "client", "scheduler"
MS, MIB, LEFT = "ms each", "MiB", "batches left"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 32 << 10)
    pages = work_pages(Source(), options.pages)
    assert pages.shape == (options.pages, PAGE)
    settings = {name: getattr(options, name) for name in ("batches", "pages", "workers", "rounds")}
    result = Result(settings, {"backlog": TASK})
    result.machine["versions"]["distributed"] = distributed.__version__
    with _cluster(options.workers) as client:
        progress("bare tasks and batches")
        compare(result, client, pages, options.rounds)
        progress(f"{options.batches} batches at once")
        flood(result, client, pages, options.batches)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield the cost of batches, and the memory of the backlog over the time."""
    pages = result.settings["pages"]
    table = Table(f"ms each, batches of {pages} pages, lz4")
    for name in ("in flight", TASK, BATCH):
        table.add_column(name)
    for count in result.names("in flight"):
        of = {one.contender: one for one in result.of(**{"in flight": count})}
        table.add_row(str(count), *(with_spread(of[name].spread) for name in (TASK, BATCH)))
    yield table
    batches = result.settings["batches"]
    table = Table(f"{batches:,} batches of {pages} pages, zstd 1, submitted at once")
    for name in ("second", "batches left", "client, MiB", "scheduler, MiB"):
        table.add_column(name)
    for second in result.names("second"):
        of = {one.contender: one for one in result.of(second=second)}
        cells = (f"{of[name].median:,.0f}" for name in (BATCH, CLIENT, SCHEDULER))
        table.add_row(str(second), *cells)
    yield table


def remarks(result: Result) -> Iterator[str]:
    """Yield the seconds of the whole backlog, and the failures."""
    for one in result.figures:
        if one.labels == {"benchmark": "backlog"}:
            yield f"batches submitted at once: {one.quantity}: {one.median:,.1f}"


SCRIPT = Script(__doc__, add_options, measure, tables, remarks)

if __name__ == "__main__":
    SCRIPT.main()
