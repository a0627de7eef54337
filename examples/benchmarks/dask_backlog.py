"""Measure small batches on a Dask cluster: their cost, and the memory that a backlog takes.

    python examples/benchmarks/dask_backlog.py [--batches 10000] [--pages 16] [--workers 2]
                                               [--rounds 5]

The first part compares bare Dask tasks with batches of `DaskBackend(local="never")` of the same
size, in interleaved rounds. 1, 16 or 256 of them are in flight at once. The second part submits
--batches batches at once. Each second it prints the number of finished batches and the memory (RSS)
of the client and the scheduler.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import Client

import batchzip
from batchzip.bench.pages import PAGE, Source, work_pages
from batchzip.terminal.console import make_console
from batchzip.terminal.table import Table
from batchzip_dask import DaskBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def compare(client: Client, pages: Pages, rounds: int) -> None:
    """Print the costs of bare tasks and of batches."""

    def task() -> Callable[[], object]:
        return client.submit(len, pages.tobytes(), pure=False).result

    def batch() -> Callable[[], object]:
        return engine.submit(batchzip.CompressBatch(pages)).wait

    table = Table(f"ms each, batches of {len(pages)} pages, lz4, medians of {rounds} rounds")
    for name in ("", "bare task", "batch"):
        table.add_column(name, left=not name)
    with batchzip.Engine("lz4", backend=DaskBackend(client, local="never")) as engine:
        _ms(task, 16)
        _ms(batch, 16)
        for count in (1, 16, 256):
            taken = [(_ms(task, count), _ms(batch, count)) for _ in range(rounds)]
            medians = (statistics.median(column) for column in zip(*taken, strict=True))
            table.add_row(f"{count} in flight", *(f"{median:.2f}" for median in medians))
    make_console().print(table)


def flood(client: Client, pages: Pages, batches: int) -> None:
    """Submit `batches` batches at once, and print their progress."""
    scheduler = client.run_on_scheduler(os.getpid)
    done = failed = 0
    over = threading.Event()

    def count(request: Request[batchzip.CompressBatch]) -> None:
        nonlocal done, failed
        failed += request.batch.has_errors
        done += 1
        if done == batches:
            over.set()

    def submit() -> None:
        for _ in range(batches):
            engine.submit(batchzip.CompressBatch(pages)).add_done_callback(count)
        make_console().print(f"all are submitted after {time.monotonic() - began:.1f} s")

    table = Table(f"{batches:,} batches of {len(pages)} pages, zstd 1, submitted at once")
    for name in ("s", "done", "client, MiB", "scheduler, MiB"):
        table.add_column(name)
    with batchzip.Engine("zstd", level=1, backend=DaskBackend(client, local="never")) as engine:
        engine.compress(batchzip.CompressBatch(pages))
        began = time.monotonic()
        submitting = threading.Thread(target=submit)
        submitting.start()
        while True:
            ended = over.wait(1)
            memory = (f"{_rss_mib(pid):.0f}" for pid in (os.getpid(), scheduler))
            table.add_row(f"{time.monotonic() - began:.1f}", f"{done:,}", *memory)
            if ended:
                break
        submitting.join()
    make_console().print(table)
    make_console().print(f"{failed} batches failed")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 32 << 10)
    pages = work_pages(Source(), options.pages)
    assert pages.shape == (options.pages, PAGE)
    with _cluster(options.workers) as client:
        compare(client, pages, options.rounds)
        flood(client, pages, options.batches)


if __name__ == "__main__":
    main()
